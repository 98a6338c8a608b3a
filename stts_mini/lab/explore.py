"""Look inside a pruned video: one self-contained page from any footage, and the data behind it.

    python -m stts_mini.lab.explore VIDEO -o out.html
    python -m stts_mini.lab.explore VIDEO --checkpoint runs/cpu/checkpoint.pt --ask "what colour is the circle ?"
    python -m stts_mini.lab.explore VIDEO --k 0.7 --mp4 out.mp4 --json out.json

The page (`explore.html` beside this file, filled in) shows the frames with pruned cells dimmed, the score map, the
bins cell by cell, the block mask, and tokens, bins and counted cost at every k of a ladder, for each scorer. All of it
is computed here; the page only draws, and loads nothing. Questions are asked if the model was trained: those of the
clip, if it lies in a prepared folder of the toy world, and those given by --ask.

--json writes what the page draws (`explore` returns it):
    format, video, model, notes, start      names and remarks; start: the k that the page opens with
    grid, w                                 cells to a side of a frame, patches to a side of a cell
    times, stamps, duration                 of the T frames, in seconds; as the LLM reads them; of the clip
    ladder                                  the values of k
    scorers   {name: {scores, levels}}      scores (T, C), exact float32, null if nothing was scored (one frame);
                                            levels, one for each k of the ladder:
        k, keep                             T strings of C times 0 or 1, cells row-major, 1 = kept
        kept, row, offset                   for each frame: its kept cells, its row (−1: none), where in it, in patches
        rows, least_rows                    T′, and ⌈Σ/N⌉, the fewest that could hold the kept patches
        tokens                              of the LLM's prefix: kept cells, time stamps and frame markers
        cost, share                         multiply-adds by part (`multiply_adds`), and their sum over that at k = 0
    questions [{question, answer, said}]    answer: the right one, or null; said: {scorer: [an answer for each k]}

Legend
    T frames · C cells of a frame · N patches of a frame, and the capacity of a row · w×w patches in a cell
    k share of the cells that is removed · T′ rows after packing · D ViT width · W LLM width

What this file does not do: decide anything (`packing.select`, `scorer.py` do), measure time, or train.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from stts_mini.data.batches import TOKENIZER, AnyTokenizer, collate, pick_questions, tokenizer_of
from stts_mini.data.clips import Clip, load_clips
from stts_mini.data.video import Video, read_video, write_video
from stts_mini.eval import parse_k
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import first_fit_descending, num_removed, select
from stts_mini.report.picture import HEAT, clip_views, write_text
from stts_mini.scorer import find_scorer, spread
from stts_mini.sequence import prefix_ids
from stts_mini.training import checkpoint
from stts_mini.training.config import TrainConfig

FORMAT = "stts_mini explore 1"
LADDER = tuple(i / 10 for i in range(10))
DEFAULT = Path("runs/cpu/checkpoint.pt")
SHOWN = 144  # pixels to a side of a frame on the page, about

Scored = Callable[[Tensor, Tensor | None], Tensor]  # (x (B, T, N, D), num_frames) → scores (B, T, C)


def multiply_adds(config: VLMConfig, kept: Sequence[int], length: int, scored: bool) -> dict[str, int]:
    """What one video costs, counted: the multiply-adds of every matrix product, by part.

    kept    kept cells of each frame; its n = kept·w² patches cost n·(4D² + 2·D·mlp) + 2·n²·D in a packed block
    length  tokens of the LLM's prefix, each of which attends to all of them (exact but for the causal stamps)
    scored  whether the STTS scorer ran

    Attention in packed rows is counted frame by frame, Σn²: what it needs. A masked kernel takes T′·N² instead.
    Norms, softmax, activations and the questions' own tokens are left out.

    >>> config = VLMConfig()                                                     # 9 cells of 4 patches, D = 64
    >>> full = multiply_adds(config, [9, 9], 24, False)
    >>> half = multiply_adds(config, [9, 0], 15, False)
    >>> full["dense"] == half["dense"], full["packed"] == 2 * half["packed"], full["connector"] == 2 * half["connector"]
    (True, True, True)
    """
    vit, llm, w2, T = config.vit, config.llm, config.w**2, len(kept)
    N, D, scorer = vit.num_patches, vit.width, config.scorer
    block = lambda n: n * (4 * D * D + 2 * D * vit.mlp) + 2 * n * n * D
    pooled = lambda features: w2 * 2 * features * D + features * D + D * D  # k and v of a cell's patches; q; out
    mlp = 2 * D * scorer.mlp + scorer.mlp**2 + scorer.mlp
    connect = pooled(len(config.taps) * D) + 2 * D * config.connector_mlp + config.connector_mlp * llm.width
    heads = llm.heads * llm.head_dim
    layer = llm.width * (2 * heads + 2 * llm.kv_heads * llm.head_dim + 3 * llm.mlp) + 2 * length * heads
    return dict(
        dense=T * (N * 3 * vit.patch_size**2 * D + (config.score_after + 2) * block(N)),
        scorer=T * config.cells * (pooled(D) + mlp) if scored else 0,
        packed=config.num_packed * sum(block(w2 * n) for n in kept),
        connector=sum(kept) * connect,
        llm=llm.depth * length * layer,
    )


def level(config: VLMConfig, stamps: list[list[int]], scores: Tensor | None, k: float, biased: bool) -> dict:
    """What is kept at one k, how it is packed, and what that takes: see the module's docstring. scores (T, C); stamps:
    the tokens of each frame's time."""
    T, C, w2 = len(stamps), config.cells, config.w**2
    keep = torch.ones(T, C, dtype=torch.bool) if scores is None else select(spread(scores[None], config.spread), k)[0]
    kept = keep.sum(1)  # (T,)
    row, offset, rows = first_fit_descending(kept * w2, C * w2)
    length = len(prefix_ids([stamps], kept[None], torch.ones(1, T, dtype=torch.bool), config.marks)[0])
    scored = biased and num_removed(k, C, T) > 0  # with nothing to remove, the scorer never runs
    return dict(
        k=k, keep=["".join("01"[cell] for cell in frame) for frame in keep.tolist()],
        kept=kept.tolist(), row=row.tolist(), offset=offset.tolist(), rows=rows, least_rows=-(-int(kept.sum()) // C),
        tokens=length, cost=multiply_adds(config, kept.tolist(), length, scored),
    )  # fmt: skip


@torch.no_grad()
def explore(
    model: VLM,
    video: Video,
    scorers: dict[str, Scored],
    ladder: Sequence[float] = LADDER,
    questions: Sequence[tuple[str, str | None]] = (),
    seed: int = 0,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> dict:
    """All that the page draws, but for names, remarks and pictures. A scorer's scores do not depend on k, so it runs
    once. `questions`: (question, right answer or None). `seed`: of the random scorer."""
    found, asked = {}, [dict(question=q, answer=right, said={}) for q, right in questions]
    prompts = [[(tokenizer.prompt(question), []) for question, _ in questions]]
    batch = collate([video], prompts, tokenizer=tokenizer).to(next(model.parameters()).device)
    for name, scorer in scorers.items():
        torch.manual_seed(seed)
        scores = model.encode_video(batch.frames, k=0.5, scorer=scorer).scores  # None for a single frame
        biased = getattr(scorer, "injects_bias", False)
        own = None if scores is None else scores[0].float().cpu()  # (T, C)
        levels = [level(model.config, batch.stamps[0], own, k, biased) for k in ladder]
        whole = sum(level(model.config, batch.stamps[0], own, 0.0, biased)["cost"].values())
        for one in levels:
            one["share"] = round(sum(one["cost"].values()) / whole, 4)
        found[name] = dict(scores=None if own is None else [[_exact(s) for s in frame] for frame in own], levels=levels)

        again = lambda *_, scores=scores: scores
        again.injects_bias = biased
        for k in ladder if questions else ():
            said = model.generate(batch, k, encode=lambda *args: model.encode_video(*args, scorer=again))[0]  # noqa: B023
            for one, ids in zip(asked, said, strict=True):
                one["said"].setdefault(name, []).append(tokenizer.decode(ids).strip())
    side = round(model.config.cells**0.5)
    return dict(
        grid=side, w=model.config.w, times=video.times, stamps=video.stamps, duration=video.duration,
        ladder=list(ladder), scorers=found, questions=asked,
    )  # fmt: skip


def _exact(score: Tensor) -> float:
    """A float32 in its shortest decimal form that reads back as the same float32."""
    return float(str(np.float32(score)))


# ------------------------------------------------------------------------------- model, scorers, questions


def load(path: Path | None) -> tuple[VLM, dict, str]:
    """The model of a checkpoint (of the default one, or else one with random weights), its file's other contents ({}
    for random weights), and a name for it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if path is None and not DEFAULT.is_file():
        torch.manual_seed(0)
        return VLM(TrainConfig().model).to(device).eval(), {}, "random weights, seed 0"
    model, state = checkpoint.load_model(path or DEFAULT, device)
    checkpoint.check_world(state, path or DEFAULT)
    return model, state, f"{path or DEFAULT}, step {state['step']}"


def pick_scorers(model: VLM, names: Sequence[str]) -> dict[str, torch.nn.Module]:
    """STTS, cosine and random, and others by name; the one that the model was trained with is the model's own."""
    picked = {}
    for name in dict.fromkeys([*("stts", "cosine", "random"), *names]):
        own = name == model.config.scored_by
        torch.manual_seed(0)
        picked[name] = model.scorer if own else find_scorer(name)(model.config.scorer)
        picked[name].to(next(model.parameters()).device).eval()
    return picked


def remarks(model: VLM, state: dict, video: Video) -> list[str]:
    """What a reader must know before believing anything."""
    notes, train = [], state.get("train_config", {})
    if not state:
        notes.append(
            "Untrained: no checkpoint was given and none is there, so the weights are random and the STTS scores mean"
            " nothing. Cosine still says what changed, and random is random."
        )
    elif model.config.scored_by != "stts" or not train.get("k") or train.get("blind"):
        notes.append(
            f"This model was trained with scorer {model.config.scored_by} at k = {train.get('k', 0):g}"
            f"{', blind' if train.get('blind') else ''}: its STTS scorer has learned nothing, and its scores mean"
            " nothing."
        )
    if model.config.spread:
        notes.append(
            f"This model spreads what it keeps over time (spread = {model.config.spread:g}), whoever scores: a cell may"
            " stay where another with a higher score goes."
        )
    if len(video.frames) == 1:
        notes.append("One frame: an image is never pruned, whatever k, and nothing is scored.")
    if video.skipped:
        notes.append(f"{video.skipped} broken packets or frames of the file were left out.")
    return notes


def known_questions(path: Path) -> list[tuple[str, str | None]]:
    """What is asked about a whole video by the JSON lines beside it: of the toy world one question of each task that
    its kind is judged by, or, if there is none, of each task; of your own all. Nothing for other footage."""
    for index in sorted(path.parent.glob("*.jsonl")):
        clips: list[Clip] = []
        with suppress(ValueError, OSError):  # somebody else's JSON lines
            clips = [c for c in load_clips(index) if c.source == (path.parent / path.name, None, None)]
        for clip in clips:
            picked = [qa for qa, _ in pick_questions(clip)] or list({qa.task: qa for qa in clip.qa}.values())
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
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return template.replace("__DATA__", text.replace("<", "\\u003c"))  # so that no name can end the script


def film(data: dict, frames: np.ndarray, k: float) -> np.ndarray:
    """The clip as it is pruned at one k of the ladder: beside the frames (T, S, S, 3), a column for each scorer with
    the pruned cells dimmed above the score map (coloured by rank: dark goes first)."""
    T, S = frames.shape[:2]
    at = data["ladder"].index(k)
    stride = S + 4  # a little room between the columns
    pages = np.zeros((T, 2 * S + 40, (len(data["scorers"]) + 1) * stride, 3), np.uint8)
    pages[:, 20 : S + 20, :S] = frames
    for column, (name, own) in enumerate(data["scorers"].items(), start=1):
        keep = np.array([[c == "1" for c in frame] for frame in own["levels"][at]["keep"]])  # (T, C)
        rank = np.ones(keep.shape)
        if own["scores"] is not None:
            rank[1:] = np.argsort(np.argsort(own["scores"][1:], axis=None, kind="stable")).reshape(rank[1:].shape)
            rank[1:] /= rank[1:].size
        _, dimmed, heated = clip_views(frames, keep, rank)
        across = slice(column * stride, column * stride + S)
        pages[:, 20 : S + 20, across], pages[:, S + 20 : 2 * S + 20, across] = dimmed, heated
        for t in range(T):
            write_text(pages[t], name, column * stride + 4, 5)
            write_text(pages[t], f"kept {keep[t].sum()}/{keep.shape[1]}", column * stride + 4, 2 * S + 25)
    for t, stamp in enumerate(data["stamps"]):
        write_text(pages[t], f"{stamp} s", 4, 5)
        write_text(pages[t], f"k={k:g}", 4, S + 26)
    return pages


def write_text_file(path: Path, text: str) -> None:
    """Write a file, all or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raise ValueError if an output is an input, another output, or a folder."""
    for i, out in enumerate(outputs):
        if out.is_dir():
            raise ValueError(f"{out} is a folder: give the name of a file")
        if any(out.resolve() == other.resolve() for other in inputs):
            raise ValueError(f"{out} is what is read: give the output another name")
        if any(out.resolve() == other.resolve() for other in outputs[:i]):
            raise ValueError(f"{out} is given twice: give every output its own name")


# --------------------------------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.explore", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("video", type=Path, help="any video file")
    parser.add_argument(
        "--checkpoint", type=Path, default=None, help=f"trained model (default: {DEFAULT}, or random weights)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=None, help="the page (default: VIDEO's name.html, if no --mp4 and no --json)"
    )
    parser.add_argument("--mp4", type=Path, default=None, help="also a video: what is kept at --k, for each scorer")
    parser.add_argument("--json", type=Path, default=None, help="also the data: keep masks, scores, bins")
    parser.add_argument("--k", type=parse_k, default=None, help="what to open with (default: as trained, or 0.5)")
    parser.add_argument("--frames", type=int, default=32, help="frames, at most (default: 32)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second, at most (default: 2)")
    parser.add_argument("--scorer", action="append", default=[], help="one more choice: my_file.py:MyScorer")
    parser.add_argument("--ask", action="append", default=[], metavar="QUESTION", help="ask this at every k")
    parser.add_argument("--seed", type=int, default=0, help="of the random scorer (default: 0)")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(args: argparse.Namespace) -> dict:
    """Look at the video as the command line says; writes the files, prints what they show, returns the data."""
    page_file = args.out or (None if args.mp4 or args.json else Path(f"{args.video.stem}.html"))
    outputs = [path for path in (page_file, args.mp4, args.json) if path]
    check_outputs(outputs, [args.video, args.checkpoint or DEFAULT])
    for scorer in args.scorer:
        find_scorer(scorer)  # before the checkpoint, which may be trained with it
    model, state, name = load(args.checkpoint)
    if args.ask and not state:
        raise ValueError("--ask needs a model that has learned to answer: give --checkpoint")
    video = read_video(args.video, args.frames, args.fps, model.config.vit.image_size)
    start = (state.get("train_config", {}).get("k") or 0.5) if args.k is None else args.k
    asked = [*known_questions(args.video), *((question, None) for question in args.ask)] if state else []
    found = explore(
        model, video, pick_scorers(model, args.scorer), sorted({*LADDER, start}), asked, args.seed, tokenizer_of(state)
    )  # fmt: skip
    notes = remarks(model, state, video)
    data = dict(format=FORMAT, video=args.video.name, model=name, notes=notes, start=start, **found)

    print(
        f"{args.video}: {len(video.frames)} frames of {video.duration:.1f} s, {model.config.cells} cells each; {name}"
    )
    print(*(f"note: {note}\n" for note in notes), sep="", end="")
    print(table(data, start))
    side = 2 * data["grid"] * max(round(SHOWN / 2 / data["grid"]), 1)  # even, and every cell as large as the others
    shown = read_video(args.video, args.frames, args.fps, side).frames if page_file or args.mp4 else None
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == args.mp4:
            write_video(path, film(data, shown, start), fps=4.0)
        else:
            write_text_file(path, json.dumps(data) + "\n" if path == args.json else page(data, shown))
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return data


def table(data: dict, k: float) -> str:
    """What each scorer's selection takes at one k of the ladder, as text."""
    lines = [f"{f'k = {k:g}':12}{'cells kept':>14}{'rows (at least)':>18}{'LLM tokens':>12}{'counted cost':>14}"]
    for name, own in data["scorers"].items():
        one = own["levels"][data["ladder"].index(k)]
        cells = f"{sum(one['kept'])} of {len(one['kept']) * data['grid'] ** 2}"
        rows = f"{one['rows']} ({one['least_rows']})"
        lines.append(f"{name:12}{cells:>14}{rows:>18}{one['tokens']:12}{100 * one['share']:13.1f}%")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
