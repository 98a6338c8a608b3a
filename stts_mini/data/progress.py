"""How long it takes: a progress bar, and what is timed in turns. The bar is one line that is redrawn on a terminal, and
elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(4000)
    ('1:15', '1:06:40')
    """
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Call `update(done, text)` after each piece of work and `close()` at the end. Writes to stderr."""

    def __init__(self, name: str, total: int, start: int = 0):
        self.name, self.total, self.start = name, total, start
        self.began = self.drawn = time.monotonic()
        self.live = sys.stderr.isatty()
        self.width = 0

    def update(self, done: int, text: str = "") -> None:
        """Draw, but not more often than 10 times a second on a terminal or once in 15 s elsewhere."""
        now = time.monotonic()
        if done < self.total and now - self.drawn < (0.1 if self.live else 15):
            return
        self.drawn = now
        left = (now - self.began) / max(done - self.start, 1) * (self.total - done)
        bar = f" {'█' * (20 * done // self.total):·<20}" if self.live else ""
        line = f"{self.name}{bar} {done}/{self.total} {text} · {clock(now - self.began)} gone, {clock(left)} to go"
        print("\r" + line.ljust(self.width) if self.live else line + "\n", end="", file=sys.stderr, flush=True)
        self.width = len(line)

    def close(self) -> None:
        """End the line."""
        if self.live and self.width:
            print(file=sys.stderr, flush=True)


def in_turns(
    run: Callable, sides: Sequence, rounds: int, now: Callable[[], float], warm: Sequence
) -> dict[object, list[float]]:
    """Seconds of run(side), for every side, in every round. Every other round runs in reverse. Before that, run(side)
    is called for each side in `warm`, untimed."""
    seconds: dict[object, list[float]] = {side: [] for side in sides}
    for side in warm:
        run(side)
    for i in range(rounds):
        for side in sides[:: -1 if i % 2 else 1]:
            began = now()
            run(side)
            seconds[side].append(now() - began)
    return seconds
