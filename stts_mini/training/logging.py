"""How a command reads its flags, reports and is stopped: the log of steps, errors in one line, Ctrl-C and SIGTERM."""

from __future__ import annotations

import argparse
import csv
import math
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stts_mini.data.clips import LOG_COLUMNS
from stts_mini.data.files import naming, print_any_text, printable, replacing
from stts_mini.training.health import WINDOW, Health, dead


def is_number(text: str) -> bool:
    """Whether float takes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


class Log:
    """log.csv, with one row a step, written with each checkpoint, and a running mean for the progress line. A task's
    column has its share of right answers, and is empty if the step had no question of it. The columns of the scorer's
    health (`training/health.py`) are empty where nothing was pruned. So is a correlation that does not exist. `seconds`
    are of training, and a resumed run counts on from its last row. Rows that a crash has damaged are dropped.
    So is a row with a cell that is neither empty nor a number."""

    NAMES = LOG_COLUMNS  # the last ones are Health's

    def __init__(self, path: Path, start: int, tasks: Sequence[str] = ()):
        self.path, self.rows, self.tokens, self.tasks = path, [], 0, tasks
        self.names = (*self.NAMES, *tasks)
        self.learned = {task: [0.0, 0.0] for task in tasks}  # right answers and all answers, since they were last shown
        self.loss = self.accuracy = None
        self.healths, self.warned = deque(maxlen=WINDOW), False
        text = path.read_text("utf-8", "replace") if start and path.exists() else ""
        whole = [line for line in text.splitlines() if line and "\0" not in line]
        header, *old = [row for line in whole for row in csv.reader([line])] or [[]]
        old = [row for row in old if len(row) == len(header) and row[0].isdecimal()]  # the last row may be cut off
        old = [row for row in old if all(map(is_number, filter(None, row)))]
        old = [row + [""] * (len(self.names) - len(row)) for row in old]  # an older run had fewer columns
        old = [row for row in old if float(row[0]) < start]  # a resumed run drops what came after its checkpoint
        self.before = float(old[-1][self.names.index("seconds")] or 0) if old else 0.0
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.names, *old])

    def add(
        self, step: int, task: float, sim: float, norm: float, accuracy: float, tokens: int, health: Health | None,
        skills: Sequence[tuple[float, float]] = (), *, seconds: float,
    ) -> None:  # fmt: skip
        """Add one training step. `skills`: for each task, right answers and all answers. `seconds`: of training, since
        this process began."""
        self.tokens, self.seconds = self.tokens + tokens, seconds
        known = [""] * len(Health._fields) if health is None else ["" if math.isnan(x) else f"{x:.4g}" for x in health]
        known += [f"{right / asked:.4f}" if asked else "" for right, asked in skills]
        known = [f"{norm:.4f}", tokens, f"{self.before + seconds:.2f}", *known]
        self.rows.append((step, f"{task:.5f}", f"{sim:.5f}", f"{accuracy:.4f}", *known))
        for so_far, (right, asked) in zip(self.learned.values(), skills, strict=False):
            so_far[0], so_far[1] = so_far[0] + right, so_far[1] + asked
        self.healths += [health] if health else []
        mix = lambda old, new: new if old is None else 0.9 * old + 0.1 * new
        self.loss, self.accuracy = mix(self.loss, task + sim), mix(self.accuracy, accuracy)

    def text(self) -> str:
        """The text of the progress line."""
        speed = self.tokens / max(self.seconds, 1e-9)
        health = self.healths and f" r {self.healths[-1].correlation:.2f} ties {100 * self.healths[-1].ties:.0f}%"
        return f"loss {self.loss:.3f} accuracy {100 * self.accuracy:.1f}%{health or ''} tokens/s {speed:.0f}"

    def skills(self, step: int) -> str:
        """For each task, the percentage of right answers in training since the last call."""
        shares = [f"{task} {100 * right / asked:.0f}" for task, (right, asked) in self.learned.items() if asked]
        self.learned = {task: [0.0, 0.0] for task in self.tasks}
        return f"step {step}, right in training: {'% '.join(shares)}%"

    def warning(self) -> str:
        """A line if the last pruned steps show that the scorer is dead. It comes only once. Else ""."""
        if self.warned or len(self.healths) < WINDOW:
            return ""
        said = dead(*self.healths)
        self.warned = bool(said)
        return said

    def flush(self) -> None:
        """Append the rows since the last call."""
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self.rows)
        self.rows = []


class Interrupt:
    """The first Ctrl-C or SIGTERM sets `asked`, and the loop looks at it between two steps. A second Ctrl-C kills. A
    second SIGTERM does not, because schedulers send it to a whole group and then to each of its processes."""

    def __enter__(self) -> Interrupt:
        self.asked = False
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, _) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, self.before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that half-written files are removed and worker processes end."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help texts with the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_one = action.default not in (None, [], ()) and action.default is not False
        return super()._get_help_string(action) if has_one else action.help


def parser_of(command: str, doc: str) -> argparse.ArgumentParser:
    """The parser of `python -m stts_mini.` + command. The first line of a module's docstring says what it does."""
    print_any_text()
    how = dict(allow_abbrev=False, formatter_class=Defaults)
    return argparse.ArgumentParser(f"python -m stts_mini.{command}", description=doc.split("\n")[0], **how)


def several(number: Callable, example: str, by: str = ",") -> Callable[[str], tuple]:
    """The type of a flag that takes numbers with `by` between them."""

    def parse(text: str) -> tuple:
        try:
            return tuple(number(part) for part in text.split(by))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers, such as {example}") from None

    return parse


@contextmanager
def one_line_errors(command: str) -> Iterator[None]:
    """An error inside ends the process with one line. Ctrl-C and SIGTERM end it without any."""
    try:
        with sigterm_as_ctrl_c():
            yield
    except MemoryError as error:
        sys.exit(f"{command}: error: out of memory ({error})")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(printable(f"{command}: error: {error}"))
    except ImportError as error:
        sys.exit(f"{command}: error: {error}: pip install {error.name}")
    except KeyboardInterrupt:
        sys.exit(130)
