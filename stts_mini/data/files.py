"""How files are written: all or nothing, through links, and never over a pipe or a device. Beside it, how impossible
values are refused (`require`) and how names with odd characters are printed (`printable`)."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def require(fine: object, message: str, *values: object) -> None:
    """Raise ValueError unless `fine`. The message has a {} for each of the values, if there are any.

    >>> require(1 > 2, "k = {}: give {}", 1, "2 or more")
    Traceback (most recent call last):
    ...
    ValueError: k = 1: give 2 or more
    """
    if not fine:
        raise ValueError(message.format(*values) if values else message)


def printable(text: object) -> str:
    """A text as one line that is safe to print: line feeds, escape codes and bytes that are not UTF-8 become escapes.

    >>> print(printable("é" + chr(10) + chr(27) + chr(0xDCE9)))
    é\\n\\x1b\\udce9
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def print_any_text() -> None:
    """From now on print, as an escape, what the terminal's encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def utf8(text: str) -> str:
    """The text itself. Raises ValueError if it cannot be written as UTF-8, because it has half a character (a lone
    surrogate). A byte that was not UTF-8 is read as one."""
    if bad := re.search("[\ud800-\udfff]", text):
        near = text[max(bad.start() - 20, 0) : bad.end() + 20]
        raise ValueError(f"no UTF-8 near {near!r}: give whole characters, and save the text as UTF-8")
    return text


def writable(path: str | os.PathLike) -> Path:
    """The file that a name stands for, links followed. Raises ValueError if it cannot be written: it is a folder, a
    pipe or a device, or its folder does not exist or is read-only. Call this before the work starts."""
    file = Path(os.path.realpath(path))
    what = "a folder" if os.path.isdir(file) else "no regular file"
    require(os.path.isfile(file) or not os.path.lexists(file), "{} is {}: give the name of a file to write", path, what)
    require(os.path.isdir(file.parent), "{}: there is no folder {}: make it first", path, file.parent)
    partial = _partial(file)
    try:
        partial.touch()
        partial.unlink(missing_ok=True)
        fine = os.access(file, os.W_OK) or not file.exists()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error
    require(fine, "{} cannot be written: no permission", path)
    return file


def check_outputs(outputs: Sequence[str | os.PathLike], inputs: Sequence[str | os.PathLike] = ()) -> None:
    """Raise ValueError if an output cannot be written (see `writable`), is also an input, or is given twice."""
    for i, out in enumerate(outputs):
        taken = {os.path.realpath(other) for other in (*inputs, *outputs[:i])}
        own = str(writable(out)) not in taken
        require(own, "{} is also an input, or is given twice: give this output another name", out)


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.{os.getpid()}@{platform.node()}.partial")  # folders are shared by machines


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError inside, such as a full disk, names the file. So does one that torch hides behind another error."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


@functools.cache  # once per folder
def sweep(folder: Path) -> None:
    """Remove the half-written files in a folder that dead processes of this machine left behind."""
    for file in folder.iterdir() if os.name == "posix" else ():
        ours = re.fullmatch(r".+\.(?:pt|mp4|jsonl?|csv|png|html|md)\.(\d+)(?:@(.+))?\.partial", file.name)
        if ours and ours[2] in (None, platform.node()):
            try:
                os.kill(int(ours[1]), 0)  # does nothing to a process that lives
            except (ProcessLookupError, OverflowError):
                file.unlink(missing_ok=True)
            except PermissionError:  # the process lives, and belongs to somebody else
                pass


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside `path` to write to. The new file replaces the old one when the block ends well. If the block fails,
    the new file is removed and the old one stays. Removes what dead processes left in the folder. Raises ValueError as
    `writable` does, and OSError that names the file."""
    file = writable(path)
    sweep(file.parent)
    partial = _partial(file)
    try:
        with naming(path):
            yield partial
            os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, record: Any) -> None:
    """Write plain values as JSON, all or nothing."""
    write_text(path, json.dumps(record, indent=1) + "\n")
