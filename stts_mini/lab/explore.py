"""Look inside a pruned video: one self-contained page from any footage, and the data behind it.

    python -m stts_mini.lab.explore VIDEO -o out.html
    python -m stts_mini.lab.explore VIDEO --checkpoint runs/cpu/checkpoint.pt --ask "what colour is the circle ?"
    python -m stts_mini.lab.explore VIDEO --k 0.7 --mp4 out.mp4 --json out.json

The page is `explore.html` beside this file, filled in. For each scorer and each k of a ladder, it shows the frames with
pruned cells dimmed, the score map and the bins cell by cell. It also shows the block mask, tokens, bins and counted
cost. All of it is computed here. The page only draws, and loads nothing. A trained model also answers questions: those
given by --ask, and those of the clip if it lies in a prepared folder of the toy world.

--json writes what the page draws (`explore` returns it):
    format, video, model, notes, start      names, remarks, and the k that the page opens with
    grid, w                                 cells to a side of a frame, patches to a side of a cell
    times, stamps, duration                 seconds of the T frames, their stamps for the LLM, seconds of the clip
    ladder                                  the values of k
    scorers   {name: {scores, levels}}      scores (T, C), exact float32, null if nothing was scored (one frame);
                                            levels, one for each k of the ladder:
        k, keep                             T strings of C times 0 or 1, cells row-major, 1 = kept
        kept, row, offset                   for each frame: its kept cells, its row (−1: none), where in it, in patches
        rows, least_rows                    T′, and ⌈Σ/N⌉, the fewest that could hold the kept patches
        tokens                              in the LLM's prefix: kept cells, time stamps and frame markers
        cost, share                         multiply-adds by part (see below), and their sum over that at k = 0
    questions [{question, answer, said}]    answer: the right one, or null; said: {scorer: [an answer for each k]}

`speed/flops.py` counts the cost of each part: stem, score, packed, connector, llm. Questions are left out. Attention
counts only pairs of tokens that may see each other. In packed rows these are the pairs within a frame. In the LLM they
are all pairs of vision tokens, and a time stamp with what comes before it. A masked kernel computes more. A scorer of
your own counts as nothing.

Legend
    T frames · C cells of a frame · N patches of a frame, and the capacity of a row · w×w patches in a cell
    k share of the cells that is removed · T′ rows after packing

What this file does not do: score (`scorer.py`), select (`packing.select`), measure time, or train.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from stts_mini.data import files
from stts_mini.data.batches import TOKENIZER, AnyTokenizer, collate, pick_questions
from stts_mini.data.clips import load_clips, normalised
from stts_mini.data.video import Video, read_video, write_video
from stts_mini.eval import parse_k
from stts_mini.lab.speed import flops
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import first_fit_descending, select
from stts_mini.report.picture import HEAT, clip_views, write_text
from stts_mini.scorer import find_scorer, spread
from stts_mini.train import pick_device
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig
from stts_mini.training.health import Health, dead, sums
from stts_mini.training.logging import one_line_errors, parser_of

FORMAT = "stts_mini explore 2"
LADDER = tuple(i / 10 for i in range(10))
DEFAULT = Path("runs/cpu/checkpoint.pt")
TITLE = b"<title>Inside a pruned video</title>"  # of each page
SHOWN = 144  # pixels to a side of a frame on the page, about


def level(config: VLMConfig, stamps: list[list[int]], scores: Tensor | None, k: float) -> dict:
    """What is kept at one k, how it is packed, and what that costs, as the module's docstring describes it.

    config  of the model, with `scored_by` naming the scorer
    scores  (T, C), or None if nothing was scored
    stamps  the tokens of each frame's time
    """
    T, C, w2 = len(stamps), config.cells, config.w**2
    keep = torch.ones(T, C, dtype=torch.bool) if scores is None else select(spread(scores[None], config.spread), k)[0]
    kept = keep.sum(1)  # (T,)
    row, offset, rows = first_fit_descending(kept * w2, C * w2)
    stamp = Fraction(sum(map(len, stamps)), T)  # an average, because a real LLM has longer and shorter ones
    work = flops.needed(config, [kept.tolist()], k, [[]], stamp)
    return dict(
        k=k, keep=["".join("01"[cell] for cell in frame) for frame in keep.tolist()],
        kept=kept.tolist(), row=row.tolist(), offset=offset.tolist(), rows=rows, least_rows=-(-int(kept.sum()) // C),
        tokens=int(work.tokens), cost={part: int(count) for part, count in flops.multiply_adds(config, work).items()},
    )  # fmt: skip


@torch.no_grad()
def explore(
    model: VLM,
    video: Video,
    scorers: dict[str, torch.nn.Module],
    ladder: Sequence[float] = LADDER,
    questions: Sequence[tuple[str, str | None]] = (),
    tokenizer: AnyTokenizer = TOKENIZER,
) -> dict:
    """What the page draws, except names, remarks and pictures. A scorer runs once, because its scores do not depend on
    k. `questions`: (question, right answer or None)."""
    found, asked = {}, [dict(question=q, answer=right and normalised(right), said={}) for q, right in questions]
    prompts = [[(tokenizer.prompt(question), []) for question, _ in questions]]
    batch = collate([video], prompts, tokenizer=tokenizer).to(next(model.parameters()).device)
    whole = sum(level(model.config, batch.stamps[0], None, 0.0)["cost"].values())
    for name, scorer in scorers.items():
        torch.manual_seed(0)
        scores = model.encode_video(batch.frames, k=0.5, scorer=scorer).scores  # None for a single frame
        own = None if scores is None else scores[0].float().cpu()  # (T, C)
        levels = [level(replace(model.config, scored_by=name), batch.stamps[0], own, k) for k in ladder]
        for one in levels:
            one["share"] = round(sum(one["cost"].values()) / whole, 4)
        shortest = None if own is None else own.numpy().astype(str).astype(float).tolist()  # still the same float32
        found[name] = dict(scores=shortest, levels=levels)

        again = lambda *_, scores=scores: scores
        again.injects_bias = getattr(scorer, "injects_bias", False)
        encode = partial(model.encode_video, scorer=again)
        for k in ladder if questions else ():
            for one, ids in zip(asked, model.generate(batch, k, encode=encode)[0], strict=True):
                one["said"].setdefault(name, []).append(normalised(tokenizer.decode(ids)))
    return dict(
        grid=round(model.config.cells**0.5), w=model.config.w, times=video.times, stamps=video.stamps,
        duration=video.duration, ladder=list(ladder), scorers=found, questions=asked,
    )  # fmt: skip


# ------------------------------------------------------------------------------- model, scorers, questions


def pick_model(path: Path | None) -> tuple[VLM, dict, AnyTokenizer, str]:
    """A model, the other contents of its file, its tokenizer, and a name for it. Without a path it is the default
    checkpoint. If that does not exist, the weights are random and the contents are {}."""
    if path is None and not DEFAULT.is_file():
        torch.manual_seed(0)
        return VLM(TrainConfig().model).eval(), {}, TOKENIZER, "random weights, seed 0"
    model, state, tokenizer = checkpoint.load_trained(path or DEFAULT, pick_device("auto"))
    return model, state, tokenizer, f"{path or DEFAULT}, step {state['step']}"


def pick_scorers(model: VLM, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    """STTS, cosine, random, and others by name. The scorer that the model was trained with keeps its weights."""
    picked = {}
    for name in dict.fromkeys(["stts", "cosine", "random", *names]):
        torch.manual_seed(0)
        scorer = model.scorer if name == model.config.scored_by else find_scorer(name)(model.config.scorer)
        picked[name] = scorer.to(next(model.parameters()).device).eval()
    return picked


def remarks(model: VLM, state: dict, video: Video, scorers: Mapping[str, torch.nn.Module]) -> list[str]:
    """What you must know before you trust the page."""
    others = {name: scorer for name, scorer in scorers.items() if name not in (model.config.scored_by, "stts")}
    fresh = ", ".join(name for name, scorer in others.items() if any(True for _ in scorer.parameters()))
    train, config = state.get("train_config", {}), model.config
    k, blind = train.get("k", 0), ", blind" * bool(train.get("blind"))
    batch = collate([video], [[]]).to(next(model.parameters()).device)
    with torch.no_grad():
        dying = dead(Health.of(sums(model.encode_video(batch.frames, k=0.5)).tolist()))
    notes = {
        "Untrained: no checkpoint was given and none is there, so the weights are random and the STTS scores mean"
        " nothing. Cosine still says what changed, and random is random.": not state,
        f"This model was trained with scorer {config.scored_by} at k = {k:g}{blind}: its STTS scorer has learned"
        " nothing, and its scores mean nothing.": state and (config.scored_by != "stts" or not k or blind),
        f"The weights of {fresh} are fresh, not trained: its scores mean nothing.": fresh,
        f"This model spreads what it keeps over time (spread = {config.spread:g}), whatever scores: a cell may stay"
        " where another with a higher score goes.": config.spread,
        "One frame: an image is never pruned, whatever k, and nothing is scored.": len(video.frames) == 1,
        f"In this video, {dying}.": dying,
        f"{video.skipped} packets or frames of the file are broken or missing, and were left out.": video.skipped,
    }
    return [note for note, holds in notes.items() if holds]


def known_questions(path: Path) -> list[tuple[str, str | None]]:
    """The questions (and answers) about a whole video in the JSON lines beside it. A clip of your own brings all. One
    of the toy world brings one for each task that judges its kind, or else for each task. Other footage brings none."""
    for index in sorted(path.parent.glob("*.jsonl")):
        with suppress(ValueError, OSError):  # JSON lines of another kind
            for clip in load_clips(index):
                if clip.source == (path, None, None):
                    picked = [qa for qa, _ in pick_questions(clip)] or {qa.task: qa for qa in clip.qa}.values()
                    return [(qa.question, qa.answer) for qa in picked]
    return []


# ------------------------------------------------------------------------------------- pictures and files


def jpeg(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8, even sides → a JPEG file."""
    codec = av.CodecContext.create("mjpeg", "w")
    codec.height, codec.width = picture.shape[:2]
    codec.pix_fmt, codec.time_base, codec.qmin, codec.qmax = "yuvj420p", Fraction(1), 4, 4
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def page(data: dict, frames: np.ndarray) -> str:
    """The whole page as text: `explore.html` with the data and the frames (T, H, W, 3) in it."""
    pictures = ["data:image/jpeg;base64," + base64.b64encode(jpeg(frame)).decode() for frame in frames]
    text = json.dumps(dict(data, heat=HEAT.astype(int).tolist(), pictures=pictures), separators=(",", ":"))
    safe = text.replace("<", "\\u003c")  # so that no name in it can end the script
    return Path(__file__).with_suffix(".html").read_text(encoding="utf-8").replace("__DATA__", safe)


def film(data: dict, frames: np.ndarray, k: float) -> np.ndarray:
    """The clip pruned at one k of the ladder. Beside the frames (T, S, S, 3), each scorer has a column: pruned cells
    dimmed, above the score map. The map is coloured by rank, and dark cells go first."""
    S, at = frames.shape[1], data["ladder"].index(k)
    room = ((0, 0), (20, 20), (0, 4), (0, 0))  # for a line of text above and one below, and between the columns
    scale = 1 if S < 128 else 2  # letters of 6 or 12 pixels
    columns = [np.pad(np.concatenate([frames, np.zeros_like(frames)], axis=1), room)]
    for t, stamp in enumerate(data["stamps"]):
        write_text(columns[0][t], f"{stamp} s", 4, 4, scale)
        write_text(columns[0][t], f"k={k:g}", 4, S + 26, scale)
    for name, own in data["scorers"].items():
        keep = np.array([[c == "1" for c in frame] for frame in own["levels"][at]["keep"]])  # (T, C)
        rank = np.ones(keep.shape)
        if own["scores"] is not None:
            order = np.argsort(own["scores"][1:], axis=None, kind="stable")
            rank[1:].flat[order] = np.arange(order.size) / order.size
        columns.append(np.pad(np.concatenate(clip_views(frames, keep, rank)[1:], axis=1), room))
        for page, kept in zip(columns[-1], keep, strict=True):
            write_text(page, name, 4, 4, scale)
            write_text(page, f"kept {kept.sum()}/{kept.size}", 4, 2 * S + 24, scale)
    return np.concatenate(columns, axis=2)


# --------------------------------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.explore", __doc__)
    parser.add_argument("video", type=Path, help="any video file")
    parser.add_argument("--checkpoint", type=Path, help=f"trained model (default: {DEFAULT}, or random weights)")
    parser.add_argument(
        "-o", "--out", type=Path, help="the page (default: VIDEO's name.html, if no --mp4 and no --json)"
    )
    parser.add_argument("--mp4", type=Path, help="also a video: what is kept at --k, for each scorer")
    parser.add_argument("--json", type=Path, help="also the data: keep masks, scores, bins")
    parser.add_argument("--k", type=parse_k, help="the k to open with (default: as trained, or 0.5)")
    parser.add_argument("--frames", type=int, default=32, help="frames, at most")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second, at most")
    parser.add_argument("--scorer", action="append", default=[], help="one more scorer to choose: my_file.py:MyScorer")
    parser.add_argument("--ask", action="append", default=[], metavar="QUESTION", help="ask this at every k")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says: write the files and print what they show."""
    page_file = args.out or (None if args.mp4 or args.json else Path(f"{args.video.stem}.html"))
    outputs = [path for path in (page_file, args.mp4, args.json) if path]
    files.require(args.video.exists(), f"no such file: {args.video}")
    files.require(all(map(str.strip, args.ask)), "--ask {}: give no empty question", args.ask)
    files.require(args.frames > 0, "--frames {}: give 1 or more", args.frames)
    files.require(0 < args.fps < math.inf, "--fps {}: give more than 0", args.fps)
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    sources = [scorer.rpartition(":")[0] for scorer in args.scorer if ":" in scorer]
    for out in outputs:
        files.require(out.suffix != ".jsonl", "{} is the name of a list of clips: give another", out)
    files.check_outputs(outputs, [args.video, args.checkpoint or DEFAULT, *sources])
    ours = args.out or not page_file or not page_file.exists() or TITLE in page_file.read_bytes()
    files.require(ours, "{} is there, and no page of ours: give -o NAME", page_file)
    for scorer in args.scorer:
        find_scorer(scorer)  # first, because the checkpoint may need it
    model, state, tokenizer, name = pick_model(args.checkpoint)
    files.require(state or not args.ask, "--ask needs a model that has learned to answer: give --checkpoint")
    video = read_video(args.video, args.frames, args.fps, model.config.vit.image_size)
    start = (state.get("train_config", {}).get("k") or 0.5) if args.k is None else args.k
    asked = [*known_questions(args.video), *((question, None) for question in args.ask)] if state else []
    scorers = pick_scorers(model, args.scorer)
    notes = remarks(model, state, video, scorers)
    data = dict(
        format=FORMAT, video=args.video.name, model=name, notes=notes, start=start,
        **explore(model, video, scorers, sorted({*LADDER, start}), asked, tokenizer),
    )  # fmt: skip

    cells = f"{len(video.frames)} frames of {video.duration:.1f} s, {model.config.cells} cells each"
    said = [f"{args.video}: {cells}; {name}", *(f"note: {note}" for note in notes)]
    print(*map(files.printable, said), table(data, start), sep="\n")
    side = 2 * data["grid"] * max(round(SHOWN / 2 / data["grid"]), 1)  # even, with cells of equal size
    shown = read_video(args.video, args.frames, args.fps, side).frames if page_file or args.mp4 else None
    for path in outputs:
        if path == args.mp4:
            write_video(path, film(data, shown, start), fps=4.0)
        else:
            files.write_text(path, json.dumps(data) + "\n" if path == args.json else page(data, shown))
        print(files.printable(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)"))


def table(data: dict, k: float) -> str:
    """What each scorer's selection costs at one k of the ladder, as text."""
    lines = [f"{f'k = {k:g}':12}{'cells kept':>14}{'rows (at least)':>18}{'LLM tokens':>12}{'counted cost':>14}"]
    for name, own in data["scorers"].items():
        one = own["levels"][data["ladder"].index(k)]
        cells = f"{sum(one['kept'])} of {len(one['kept']) * data['grid'] ** 2}"
        rows = f"{one['rows']} ({one['least_rows']})"
        lines.append(f"{files.printable(name):12}{cells:>14}{rows:>18}{one['tokens']:12}{100 * one['share']:13.1f}%")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
