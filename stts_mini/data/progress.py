"""A progress bar: one line that is redrawn on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import sys
import time


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
