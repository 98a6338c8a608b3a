"""Check a file of your own clips before a night of training. Lists every bad line, with its number and the reason.

    python -m stts_mini.lab.check mine.jsonl             reads and decodes everything
    python -m stts_mini.lab.check mine.jsonl --quick     decodes the first and the last frame of each clip

Exits 1 if any line is bad. A line is not bad if its file can be decoded in part. A note then says how much is broken or
missing, and training leaves that out. Other notes name what makes a training slow: long texts and many pictures.

What this file does not do: say what a line may hold (`data/clips.py`), decode (`data/video.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from stts_mini.data.batches import TOKENIZER, try_read
from stts_mini.data.clips import lines_of, on_all_cores, parse_clip
from stts_mini.data.files import printable
from stts_mini.data.progress import Progress
from stts_mini.data.tokenizer import LAST_STAMP
from stts_mini.data.video import VideoError
from stts_mini.training.logging import one_line_errors, parser_of

LONG_TEXT = 1000  # tokens of a question with its answer
MANY_PICTURES = 64  # of a clip


def check(index: Path, quick: bool = False) -> tuple[int, list[str], list[str]]:
    """How many lines there are, what is wrong with the bad ones, and notes about the others."""
    clips, bad, notes = {}, {}, []  # by the line's number
    for number, line in enumerate(lines_of(index), start=1):
        try:
            if line.strip():
                clips[number] = parse_clip(line, number, index.parent)
        except ValueError as error:
            bad[number] = error
    count = len(clips) + len(bad)
    progress = Progress("decoding clips", len(clips))
    decode = partial(try_read, max_frames=2, fps=2.0, size=32, thorough=not quick)
    for done, (number, video) in enumerate(zip(clips, on_all_cores(decode, list(clips.values())), strict=True)):
        progress.update(done + 1)
        if isinstance(video, VideoError):
            bad[number] = video
            continue
        if video.skipped:
            files = ", ".join(map(str, clips[number].images or (clips[number].video,)))
            notes.append(f"line {number}: {video.skipped} packets or frames are broken or missing in {files}")
        elif video.duration > LAST_STAMP:
            long = f"{video.duration:.1f} s. Beyond {LAST_STAMP} s a time stamp takes the small model six tokens"
            notes.append(f"line {number}: {long}")
        texts = max(len(TOKENIZER.encode(f"{qa.question} {qa.answer}")) for qa in clips[number].qa)
        pictures = len(clips[number].images)
        if texts > LONG_TEXT:
            notes.append(f"line {number}: a question and its answer take the small model {texts} tokens")
        if pictures > MANY_PICTURES:
            notes.append(f"line {number}: {pictures} pictures. All of them are shown, and none is pruned")
    progress.close()
    return count, [f"line {number}: {bad[number]}" for number in sorted(bad)], notes


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.check", __doc__)
    parser.add_argument("index", type=Path, help="a file of JSON lines")
    parser.add_argument("--quick", action="store_true", help="decode only the first and the last frame of each clip")
    args = parser.parse_args(argv)
    with one_line_errors(f"{parser.prog} {args.index}"):
        count, bad, notes = check(args.index, args.quick)
        last = f"{count} lines, {len(bad)} bad" if count else "no line: give one for each clip"
        try:
            print("\n".join(map(printable, [*bad, *notes, f"{args.index}: {last}"])), flush=True)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python tries again at its end
            if not isinstance(error, BrokenPipeError):  # nobody reads on: `| head`
                raise
    if bad or not count:
        sys.exit(1)


if __name__ == "__main__":
    main()
