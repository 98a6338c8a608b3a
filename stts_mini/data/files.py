"""Files that are written: all or nothing, through links, and never in place of a pipe or a device. And one way to
refuse what cannot be, and to print names that hold anything."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def require(fine: object, message: str, *values: object) -> None:
    """Raise ValueError unless all is fine. The message has a {} for each of the values, if there are any.

    >>> require(1 > 2, "k = {}: give {}", 1, "2 or more")
    Traceback (most recent call last):
    ...
    ValueError: k = 1: give 2 or more
    """
    if not fine:
        raise ValueError(message.format(*values) if values else message)


def printable(text: object) -> str:
    """A text as one line that any terminal shows as it is: line feeds, escape codes and what is no UTF-8 as escapes.

    >>> print(printable("é" + chr(10) + chr(27) + chr(0xDCE9)))
    é\\n\\x1b\\udce9
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def utf8(text: str) -> str:
    """The text, if it can be written as UTF-8. Raises ValueError for half a character (a lone surrogate), which also
    stands for a byte that is no UTF-8."""
    if bad := re.search("[\ud800-\udfff]", text):
        near = text[max(bad.start() - 20, 0) : bad.end() + 20]
        raise ValueError(f"no UTF-8 near {near!r}: give whole characters, and save the text as UTF-8")
    return text


def writable(path: str | os.PathLike) -> Path:
    """The file that a name stands for, links followed. Raises ValueError for what cannot be written as a file: a
    folder, a pipe, a device; a folder around it that is not there, or that takes no file. Ask before the work."""
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
    """Raise ValueError if an output cannot be written (see `writable`), is what is read, or is another output."""
    for i, out in enumerate(outputs):
        taken = {os.path.realpath(other) for other in (*inputs, *outputs[:i])}
        own = str(writable(out)) not in taken
        require(own, "{} is what is read, or is given twice: give the output a name of its own", out)


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.{os.getpid()}@{platform.node()}.partial")  # folders are shared by machines


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError inside, a full disk say, names the file; so does one that torch hides behind an error of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


@functools.cache  # once per folder
def sweep(folder: Path) -> None:
    """Remove the half-written files in a folder that processes of this machine left behind when they died."""
    for file in folder.iterdir() if os.name == "posix" else ():
        ours = re.fullmatch(r".+\.(?:pt|mp4|jsonl?|csv|png|html|md)\.(\d+)(?:@(.+))?\.partial", file.name)
        if ours and ours[2] in (None, platform.node()):
            try:
                os.kill(int(ours[1]), 0)  # does nothing to a process that lives
            except (ProcessLookupError, OverflowError):
                file.unlink(missing_ok=True)
            except PermissionError:  # it lives, and is somebody else's
                pass


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A name beside `path` to write to. It takes that file's place when the block ends well; if not, it is removed,
    and what was there before stays. What dead processes left there is removed. Raises ValueError as `writable` does,
    and OSError that names the file."""
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
