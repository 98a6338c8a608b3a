"""How good are the answers? Two scorings, beside what chance, question text and luck alone would give.

    multiple choice   the shown option with the largest log-likelihood, summed over its tokens
    generation        greedy decoding, no options shown; right only if the text is exactly the answer
    chance            1 / number of shown options
    look-up           the commonest training answer to that very question text (a leak would show here)
    blind             the same model without any vision tokens

    python -m stts_mini.eval [CHECKPOINT] --k 0.5 --max-frames 16
    python -m stts_mini.eval CHECKPOINT --data mine.jsonl          clips of your own (see clips.py)

Accuracies are means over questions, with a 95% interval from resampling clips. "short" is the mean over
the short tasks, "long" over the long ones. "evidence" is the share of the pixels that answers depend on
(frame 0 excluded) that lie in kept cells, task by task, and then the mean over tasks.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from stts_mini import checkpoint, distributed, world
from stts_mini.clips import (
    FREE,
    OPTION_SEED,
    OWN,
    QA,
    WORLD_ID,
    Clip,
    fingerprint,
    index_file,
    load_clips,
    prepare,
)
from stts_mini.data import TOKENIZER, Annotate, AnyTokenizer, Reader, collate, shown_options, tokenizer_of
from stts_mini.drawing import evidence
from stts_mini.model import VLM, Encoded
from stts_mini.packing import check_k
from stts_mini.progress import Progress
from stts_mini.scorer import find_scorer
from stts_mini.video import Video, VideoError

GENERATED = (*world.GENERATED, FREE)  # tasks that are judged by what the model says


@dataclass
class Result:
    """Scores of one model on one set of clips.

    correct    {scoring: {task: [(clip number, 0 or 1)]}} for the scorings "choice" and "generated"
    chance     {task: [1 / shown options]}, 0 for a task that is judged by generation (`GENERATED`)
    kept, cells  vision tokens kept and before pruning, summed over the videos (an image loses none)
    rows         packed rows, and ⌈Σ/N⌉, the fewest that could hold the kept tokens, summed over batches
    evidence   {task: (pixels in kept cells, all pixels) that its answers depend on}
    """

    correct: dict[str, dict[str, list[tuple[int, int]]]] = field(
        default_factory=lambda: {"choice": defaultdict(list), "generated": defaultdict(list)}
    )
    chance: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    kept: int = 0
    cells: int = 0
    rows: tuple[int, int] = (0, 0)
    evidence: dict[str, tuple[int, int]] = field(default_factory=dict)

    def evidence_kept(self, tasks: Sequence[str] | None = None) -> float:
        """The share of the pixels that answers depend on (frame 0 excluded) that lie in kept cells: mean over tasks
        that depend on any; NaN if none does."""
        parts = [self.evidence.get(t, (0, 0)) for t in (self.evidence if tasks is None else tasks)]
        shares = [kept / every for kept, every in parts if every]
        return float(np.mean(shares)) if shares else float("nan")

    def answers(self, task: str, scoring: str | None = None) -> list[tuple[int, int]]:
        """The task's (clip number, 0 or 1), by its own scoring if none is named."""
        return self.correct[scoring or ("generated" if task in GENERATED else "choice")][task]

    def accuracy(self, task: str, scoring: str | None = None) -> float:
        """Mean over the task's questions."""
        return float(np.mean([right for _, right in self.answers(task, scoring)]))

    def mean(self, tasks: Sequence[str], scoring: str | None = None) -> float:
        """Mean over tasks, each counting the same."""
        return float(np.mean([self.accuracy(task, scoring) for task in tasks]))

    def interval(self, tasks: Sequence[str], draws: int = 1000) -> tuple[float, float]:
        """95% interval of `mean`: percentile bootstrap over clips, fixed seed."""
        rows = {t: np.array(self.answers(t)) for t in tasks}
        numbers = np.unique(np.concatenate([r[:, 0] for r in rows.values()]))
        rng, means = np.random.default_rng(0), []
        for _ in range(draws):
            weight = np.bincount(rng.integers(len(numbers), size=len(numbers)), minlength=len(numbers))
            per_task = []
            for r in rows.values():
                w = weight[np.searchsorted(numbers, r[:, 0])]
                per_task.append((w * r[:, 1]).sum() / max(w.sum(), 1))
            means.append(np.mean(per_task))
        low, high = np.percentile(means, (2.5, 97.5))
        return float(low), float(high)


def pick_questions(clip: Clip) -> list[tuple]:
    """One question of each task that the clip's kind is judged by (every question of a clip of your own), each with
    its shown options: the same choice for every model, whatever else is asked."""
    rng, picked = np.random.default_rng((OPTION_SEED, [*world.TASKS, OWN].index(clip.kind), clip.seed)), {}
    if clip.kind == OWN:
        return [(qa, shown_options(qa, rng)) for qa in clip.qa]
    for i in rng.permutation(len(clip.qa)):
        qa = clip.qa[i]
        if qa.task in world.TASKS[clip.kind]:
            picked.setdefault(qa.task, qa)
    return [(qa, shown_options(qa, rng)) for qa in picked.values()]


@torch.no_grad()
def evaluate(
    model: VLM,
    clips: Sequence[Clip],
    reader: Reader,
    k: float,
    encode: Callable[..., Encoded] | None = None,
    batch_size: int = 16,
    generate: bool = True,
    name: str = "test",
    annotate: Annotate | None = None,
    tokenizer: AnyTokenizer = TOKENIZER,
) -> Result:
    """Ask the model one question of each task on every clip, at any k and any number of frames (the
    reader's). `encode`: another encoder, such as `model.encode_blind`. `generate`: score greedy answers to
    all tasks, not only to those that are judged by them. `annotate`: scores in the place of the scorer's. The
    control's tasks are named "image/task". Clips that cannot be read are left out (the reader lists them). Several
    processes (`distributed.py`) share the clips, and each gets the whole result."""
    device = next(model.parameters()).device
    result, was_training = Result(), model.training
    model.eval()
    readable = _readable(clips, reader)
    progress = Progress(name, len(clips))
    while batch := list(itertools.islice(readable, batch_size)):  # no more videos in memory than that
        numbers, videos = zip(*batch, strict=True)
        asked = [pick_questions(clips[n]) for n in numbers]
        prompt, ids_of = tokenizer.prompt, tokenizer.encode
        choices = [[(prompt(qa.question, shown), ids_of(o)) for qa, shown in own for o in shown] for own in asked]
        scores = [annotate(clips[n], video) for n, video in zip(numbers, videos, strict=True)] if annotate else None
        output = model(collate(videos, choices, scores, tokenizer).to(device), k, encode)
        likelihood = iter(option_likelihoods(output).tolist())
        spoken = [[qa for qa, _ in own if generate or qa.task in GENERATED] for own in asked]
        said = [[] for _ in spoken]
        if any(spoken):
            open_ended = [[(prompt(qa.question), []) for qa in own] for own in spoken]
            same = lambda *_, encoded=output.encoded: encoded  # the same selection answers both scorings
            longest = max([16, *(len(ids_of(qa.answer)) + 1 for own in spoken for qa in own)])
            batch = collate(videos, open_ended, tokenizer=tokenizer).to(device)
            said = model.generate(batch, k, longest, encode=same)
        for b, n in enumerate(numbers):
            for qa, shown in asked[b]:
                task = task_name(clips[n], qa)
                likely = [next(likelihood) for _ in shown]
                right = shown[int(np.argmax(likely))] == qa.answer
                result.correct["choice"][task].append((n, int(right)))
                result.chance[task].append(0 if task in GENERATED else 1 / len(shown))
            for qa, ids in zip(spoken[b], said[b], strict=True):
                right = tokenizer.decode(ids).strip() == qa.answer
                result.correct["generated"][task_name(clips[n], qa)].append((n, int(right)))
        _count_kept(result, output.encoded, [clips[n] for n in numbers], videos)
        progress.update(numbers[-1] + 1)
    progress.close()
    model.train(was_training)
    whole = merged(distributed.gather(result))
    if not whole.chance:
        why = next(iter(reader.broken.values()), "there is none")
        raise VideoError(f"none of {len(clips)} clips can be read: {why}")
    return whole


def _readable(clips: Sequence[Clip], reader: Reader) -> Iterator[tuple[int, Video]]:
    """This process's share of the clips, as (number, video): whatever can be read."""
    for n in range(distributed.rank(), len(clips), distributed.world_size()):
        with suppress(VideoError):
            yield n, reader(clips[n])


def merged(results: Sequence[Result]) -> Result:
    """The results of several processes as one, in the order of the clips."""
    whole = Result()
    for result in results:
        for scoring, tasks in result.correct.items():
            for task, answers in tasks.items():
                whole.correct[scoring][task] = sorted(whole.correct[scoring][task] + answers)
        for task, chances in result.chance.items():
            whole.chance[task] += chances
        whole.kept, whole.cells = whole.kept + result.kept, whole.cells + result.cells
        whole.rows = (whole.rows[0] + result.rows[0], whole.rows[1] + result.rows[1])
        for task, (kept, every) in result.evidence.items():
            before = whole.evidence.get(task, (0, 0))
            whole.evidence[task] = before[0] + kept, before[1] + every
    return whole


def task_name(clip: Clip, qa: QA) -> str:
    """The task's name in every table: the control's are told from the videos'."""
    return f"image/{qa.task}" if clip.kind == "image" else qa.task


def option_likelihoods(output) -> torch.Tensor:
    """The log-likelihood of each branch's answer, summed over its tokens, the end token left out: (R,)."""
    log_p = output.logits.log_softmax(-1).gather(1, output.targets[:, None]).squeeze(1)
    last = torch.cat([output.branch[1:] != output.branch[:-1], output.branch.new_ones(1).bool()])
    sums = log_p.new_zeros(int(output.branch[-1]) + 1)
    return sums.index_add(0, output.branch, log_p.masked_fill(last, 0))


def evidence_per_cell(clip: Clip, video: Video, side: int) -> dict[str, np.ndarray]:
    """For each task that the clip's kind is judged by, how many pixels of each cell its answers depend on, frame 0
    left out: {task: (T, side²) int}. `side`: cells in a row. (What was asked for before is remembered.)"""
    return _evidence_per_cell(clip.split, clip.kind, clip.seed, tuple(video.times), video.frames.shape[1], side)


@functools.lru_cache(maxsize=10000)
def _evidence_per_cell(split: str, kind: str, seed: int, times: tuple, size: int, side: int) -> dict[str, np.ndarray]:
    scene, T = world.make_scene(split, kind, seed), len(times)
    tasks = {}
    for task in world.TASKS[kind]:
        pixels = evidence(scene, tuple(q for q in scene.questions if q.task == task), np.array(times), size)
        tasks[task] = pixels.reshape(T, side, size // side, side, size // side).sum((2, 4)).reshape(T, side * side)
    return tasks


def _count_kept(result: Result, encoded: Encoded, clips: Sequence[Clip], videos: Sequence) -> None:
    """Add a batch's kept cells, rows and kept evidence to the result."""
    if encoded.keep is None:
        return
    if encoded.packed is not None:
        rows = len(encoded.packed.frame), encoded.packed.least_rows
        result.rows = (result.rows[0] + rows[0], result.rows[1] + rows[1])
    keep = encoded.keep.cpu().numpy()
    C = keep.shape[2]
    side = round(C**0.5)
    for b, (clip, video) in enumerate(zip(clips, videos, strict=True)):
        T = len(video.frames)
        if T > 1 and not video.still:
            result.kept += int(encoded.kept[b].sum())
            result.cells += T * C
        for task, pixels in evidence_per_cell(clip, video, side).items() if T > 1 and clip.kind != OWN else ():
            seen, every = result.evidence.get(task, (0, 0))
            result.evidence[task] = seen + int(pixels[keep[b, :T]].sum()), every + int(pixels.sum())


def look_up(train: Sequence[Clip], test: Sequence[Clip]) -> dict[str, float]:
    """Accuracy per task of answering with the shown option that was the commonest training answer to the
    same question text, whatever times it names; ties (and questions never seen) count as the chance to guess
    right. (For a task that is judged by generation: with the commonest of all answers.)"""
    plain = lambda question: re.sub(r"\d+\.\d", "#", question)
    answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for clip in train:
        for qa in clip.qa:
            answers[clip.kind, plain(qa.question)][qa.answer] += 1
    right = defaultdict(list)
    for clip in test:
        for qa, shown in pick_questions(clip):
            seen = answers[clip.kind, plain(qa.question)]
            options = list(seen) or [""] if qa.task in GENERATED else shown
            best = [option for option in options if seen[option] == max(seen[o] for o in options)]
            right[task_name(clip, qa)].append((qa.answer in best) / len(best))
    return {task: float(np.mean(values)) for task, values in right.items()}


def table(result: Result, blind: Result | None, lookup: dict[str, float] | None) -> str:
    """The result as text: a row per task, the means, tokens and evidence. The first column is multiple choice
    (generation for `GENERATED`)."""
    tasks = list(result.correct["choice"])
    groups = grouped(tasks)
    rows = [f"{'':17}{'score':>8} {'95% interval':>16}{'generated':>11}{'chance':>8}{'look-up':>9}{'blind':>7}{'n':>6}"]

    def row(name: str, of: list[str]) -> str:
        """One line: the means over the tasks `of`."""
        low, high = result.interval(of)
        generated = [result.mean(of, "generated")] if all(result.correct["generated"].get(t) for t in of) else []
        chance = np.mean([np.mean(result.chance[t]) for t in of])
        others = [
            *(f"{100 * g:10.1f}%" for g in generated or [float("nan")]),
            f"{100 * chance:7.1f}%",
            f"{100 * np.mean([lookup[t] for t in of]):8.1f}%" if lookup else f"{'–':>9}",
            f"{100 * blind.mean(of):6.1f}%" if blind else f"{'–':>7}",
        ]
        n = sum(len(result.correct["choice"][t]) for t in of)
        return (
            f"{name:17}{100 * result.mean(of):7.1f}% {f'{100 * low:.1f} – {100 * high:.1f}':>16}{''.join(others)}{n:6}"
        )

    for name, of in groups.items():
        rows += [row(t, [t]) for t in of]
        rows.append(row(f"{name} (mean)", of))
    if len(groups) == 2:
        rows.append(f"{'average':17}{100 * np.mean([result.mean(of) for of in groups.values()]):7.1f}%")
    rows += [row(t, [t]) for t in tasks if not any(t in of for of in groups.values())]
    if result.cells:
        kept = (
            f"vision tokens of videos kept: {result.kept} of {result.cells} ({100 * result.kept / result.cells:.1f}%)"
        )
        evidence = f"evidence kept (mean over tasks): {100 * result.evidence_kept():.1f}%"
        packed = f"packed rows: {result.rows[0]} (at least {result.rows[1]})"
        rows.append(", ".join([kept, evidence, packed] if result.evidence else [kept, packed]))
    return "\n".join(rows)


def grouped(tasks: Sequence[str]) -> dict[str, list[str]]:
    """The short and the long ones among the tasks; a group without any is left out."""
    groups = {"short": world.SHORT_TASKS, "long": world.LONG_TASKS}
    there = {name: [t for t in of if t in tasks] for name, of in groups.items()}
    return {name: of for name, of in there.items() if of}


def test_set(
    data: str | Path, size: int, clips: int, split: str = "test", kinds: Sequence[str] = tuple(world.TASKS)
) -> list[Clip]:
    """`clips` held-out clips of each of the kinds that is judged, written first if need be."""
    return load_clips(prepare(data, split, {kind: clips for kind in kinds if world.TASKS[kind]}, size))


def parse_k(text: str) -> float:
    """A share from a command line, with the same clear refusal as everywhere."""
    try:
        check_k(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return float(text)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.eval", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checkpoint", nargs="?", default="runs/cpu/checkpoint.pt", help="what to evaluate")
    parser.add_argument("--k", type=parse_k, default=None, help="share of cells to remove; as in training if not given")
    parser.add_argument("--max-frames", type=int, default=None, help="frames of a clip; as in training if not given")
    parser.add_argument("--scorer", default=None, help="another scorer than in training, or my_file.py:MyScorer")
    parser.add_argument("--clips", type=int, default=200, help="test clips of each kind")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which held-out clips")
    parser.add_argument("--data", default="data", help="folder of the prepared clips, or mine.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of the random scorer")
    parser.add_argument("--json", default=None, help="also write the scores to this file")
    args = parser.parse_args(argv)
    try:
        with distributed.processes(torch.device("cuda" if torch.cuda.is_available() else "cpu")) as device:
            run(args, device)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Evaluate as the command line says; prints the table and returns what --json writes."""
    torch.manual_seed(args.seed)
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise ValueError(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    own = find_scorer(args.scorer) if args.scorer else None  # before the checkpoint, which may name it
    model, state = checkpoint.load_model(args.checkpoint, device)
    check_world(state, args.checkpoint)
    train = state["train_config"]
    frames = train["max_frames"] if args.max_frames is None else args.max_frames
    k = train["k"] if args.k is None else args.k
    if args.clips < 1 or frames < 1:
        raise ValueError(f"--clips {args.clips}, --max-frames {frames}: give at least 1")
    if k >= 0.8 and frames < 32:
        print(f"note: at k = {k} and {frames} frames, little but frame 0 is kept, whoever scores: take 32 or more")
    with distributed.first() as here:  # process 0 writes what is missing of the clips, for all
        if here and distributed.world_size() > 1:
            clips_to_judge(args, train)
    clips, asked = clips_to_judge(args, train)
    reader = Reader(frames, model.config.vit.image_size, train["fps"])
    trained, scorer = model.config.scored_by, args.scorer or model.config.scored_by
    if scorer != trained:
        model.scorer = own(model.config.scorer).to(device)
    blind, tokenizer = model.encode_blind, tokenizer_of(state)
    trained = trained if train["k"] else "unpruned, no scorer"
    pattern = f", spread {model.config.spread}" * bool(model.config.spread)  # it belongs to the model, whoever scores
    name = "blind" if train["blind"] else f"scorer {scorer} (trained: {trained}){pattern}, k = {k}"
    print(f"{args.checkpoint} (step {state['step']}, seed {train['seed']}), {name}, up to {frames} frames")
    count = f"{len(clips)} clips" if is_own(args.data) else f"{args.clips} clips of each kind"
    which = args.data if is_own(args.data) else f"{args.split} set"
    print(f"{which} {fingerprint(clips)}: {count}, seed of this evaluation {args.seed}")
    result = evaluate(model, clips, reader, k, blind if train["blind"] else None, tokenizer=tokenizer)
    without = evaluate(model, clips, reader, 0.0, blind, generate=False, name="blind", tokenizer=tokenizer)
    lookup = look_up(load_clips(asked), clips) if asked.exists() else None
    print(table(result, without, lookup))
    print(broken_clips({k: why for own in distributed.gather(reader.broken) for k, why in own.items()}), end="")
    summary = dict(
        checkpoint=str(args.checkpoint), step=state["step"], scorer=scorer, k=k, max_frames=frames, seed=args.seed,
        split=args.split, fingerprint=fingerprint(clips), torch=torch.__version__, train_config=train,
        **summarise(result, without, lookup),
    )  # fmt: skip
    if args.json and distributed.rank() == 0:
        Path(args.json).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def is_own(data: str) -> bool:
    """Whether --data names clips of your own, or the folder of the world's."""
    return data.endswith(".jsonl")


def clips_to_judge(args: argparse.Namespace, train: dict) -> tuple[list[Clip], Path]:
    """The clips that the command line names, and the file of the training clips, to look answers up in."""
    if is_own(args.data):
        return load_clips(args.data), Path(train["data"])
    trained_on = {kind: train[f"train_{kind}"] for kind in world.TASKS}
    kinds = [kind for kind, count in trained_on.items() if count]
    clips = test_set(args.data, train["video_size"], args.clips, args.split, kinds)
    return clips, index_file(args.data, "train", trained_on, train["video_size"])


def broken_clips(broken: dict[tuple, str]) -> str:
    """A line for each clip that could not be read, under one that counts them; nothing if all could."""
    lines = [f"  {error}\n" for error in broken.values()]
    return f"could not be read, and left out: {len(lines)}\n" * bool(lines) + "".join(lines)


def check_world(state: dict, path: str | Path) -> None:
    """Raises CheckpointError for a model that was trained in another world, or with other words."""
    if state.get("world") != WORLD_ID and not state.get("tokenizer"):  # a real LLM knows no world of ours
        raise checkpoint.CheckpointError(
            f"{path} was trained in {state.get('world', 'an older world')}; this code has {WORLD_ID}: train anew, or"
            " take the code that it was trained with"
        )


def summarise(result: Result, blind: Result | None = None, lookup: dict[str, float] | None = None) -> dict:
    """The numbers of a result, and of what it is compared with, as plain values."""
    tasks = list(result.correct["choice"])
    summary = {scoring: {t: result.accuracy(t, scoring) for t in of} for scoring, of in result.correct.items()}
    summary["interval"] = {t: result.interval([t]) for t in tasks}
    for name, of in grouped(tasks).items():
        summary[name], summary[f"{name}_interval"] = result.mean(of), result.interval(of)
    summary["chance"] = {t: float(np.mean(result.chance[t])) for t in tasks}
    summary["blind"] = {t: blind.accuracy(t) for t in tasks} if blind else None
    rest = dict(kept=result.kept, cells=result.cells, rows=list(result.rows), evidence=result.evidence)
    return dict(**summary, look_up=lookup, **rest)


if __name__ == "__main__":
    main()
