"""Files that are written: all or nothing, through links, and never in place of a pipe or a device. And one way to
refuse what cannot be."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
from collections.abc import Iterator
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


def writable(path: str | os.PathLike) -> Path:
    """The file that a name stands for, links followed. Raises ValueError for what cannot be written as a file: a
    folder, a pipe, a device; a folder around it that is not there, or without permission. Ask before the work."""
    file = Path(os.path.realpath(path))
    if file.exists() and not file.is_file():
        what = "a folder" if file.is_dir() else "no regular file"
        raise ValueError(f"{path} is {what}: give the name of a file to write")
    if not file.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {file.parent}: make it first")
    if not os.access(file.parent, os.W_OK):
        raise ValueError(f"{path}: no permission to write to the folder {file.parent}")
    return file


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
    partial = file.with_name(f"{file.name}.{os.getpid()}@{platform.node()}.partial")  # folders are shared by machines
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
