"""How good are the answers? Two scorings, beside three baselines that do not see the video.

    multiple choice   the shown option with the largest log-likelihood, summed over its tokens and the end token
    generation        greedy decoding, no options shown; right only if the text is the answer, once both are
                      `normalised` (data/clips.py); --lenient ignores case and a final full stop
    chance            1 / number of shown options
    look-up           the commonest training answer to the same question text (a leak would show here)
    blind             the same model without any vision tokens

    python -m stts_mini.eval [CHECKPOINT] --k 0.5 --max-frames 16
    python -m stts_mini.eval CHECKPOINT --data mine.jsonl          clips of your own (see data/clips.py)
    python -m stts_mini.eval CHECKPOINT --why UNPRUNED             also why it was wrong, in twice the time
    python -m stts_mini.eval CHECKPOINT --max-frames ⌈T/(1−k)⌉     test-time scaling, by `packing.scaled_frames`

What this file does not do: means, intervals and tables of the scores (`report/result.py`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stts_mini.data.batches import TOKENIZER, Annotate, AnyTokenizer, Reader, collate, pick_questions
from stts_mini.data.clips import (
    OWN,
    QA,
    WORLD_FOLDER,
    Clip,
    fingerprint,
    held_out,
    holds_worlds,
    index_file,
    is_own,
    load_clips,
    normalised,
)
from stts_mini.data.files import check_outputs, printable, require, write_json
from stts_mini.data.progress import Progress
from stts_mini.data.video import Video, VideoError
from stts_mini.model import VLM, Encoded
from stts_mini.packing import check_k
from stts_mini.report.result import (
    GENERATED,
    Result,
    against,
    broken_clips,
    examples,
    merged,
    summarise,
    table,
    why_wrong,
    wrong_table,
)
from stts_mini.toy import world
from stts_mini.toy.drawing import Question, Scene, evidence
from stts_mini.training import checkpoint, distributed
from stts_mini.training.health import Health, dead, sums
from stts_mini.training.logging import one_line_errors, parser_of

ROUND = 2048  # tokens of a clip's questions that are read at a time; the toy world's clips have fewer than half


@contextmanager
def in_eval_mode(model: VLM) -> Iterator[None]:
    """The model is in eval mode inside, and afterwards in the mode that it had, also after an error."""
    was_training = model.training
    try:
        yield model.eval()
    finally:
        model.train(was_training)


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
    lenient: bool = False,
) -> Result:
    """Ask the model the questions of `pick_questions` on every clip, at any k and with the reader's number of frames.
    `encode` is another encoder, such as `model.encode_blind`. `generate` scores greedy answers to all tasks, not only
    to the open ones. `annotate` gives scores instead of the scorer's. For `lenient` see `normalised`. Image tasks are
    named "image/task". Clips that cannot be read are left out, and the reader lists them. Several processes
    (`training/distributed.py`) share the clips, and each gets the whole result."""
    device = next(model.parameters()).device
    result, readable, progress = Result(), _readable(clips, reader), Progress(name, len(clips))
    with in_eval_mode(model):
        while some := list(itertools.islice(readable, batch_size)):  # only these in memory
            numbers, videos = zip(*some, strict=True)
            prompt, ids_of, seen = tokenizer.prompt, tokenizer.encode, encode
            scores = [annotate(clips[n], video) for n, video in zip(numbers, videos, strict=True)] if annotate else None
            for asked in _in_rounds([pick_questions(clips[n]) for n in numbers], tokenizer):
                choices = [
                    [(prompt(qa.question, shown), ids_of(o)) for qa, shown in own for o in shown] for own in asked
                ]
                output = model(collate(videos, choices, scores, tokenizer).to(device), k, seen)
                seen = lambda *_, encoded=output.encoded: encoded  # all is answered from the same kept cells
                spoken = [[qa for qa, _ in own if generate or qa.task in GENERATED] for own in asked]
                said, longest = [[] for _ in spoken], 0
                if any(spoken):
                    open_ended = [[(prompt(qa.question), []) for qa in own] for own in spoken]
                    longest = max([16, *(len(ids_of(qa.answer)) + 1 for own in spoken for qa in own)])
                    batch = collate(videos, open_ended, tokenizer=tokenizer).to(device)
                    said = model.generate(batch, k, longest, encode=seen)
                chosen = option_likelihoods(output).tolist()
                _add_answers(result, clips, numbers, asked, chosen, spoken, said, longest, tokenizer, lenient)
            _count_kept(result, output.encoded, [clips[n] for n in numbers], videos, numbers)
            progress.update(numbers[-1] + 1)
    progress.close()
    whole = merged(distributed.gather(result))
    share_losses(reader)
    if not whole.chance:
        why = next(iter(reader.broken.values()), "there is none")
        raise VideoError(f"none of {len(clips)} clips can be read: {why}")
    return whole


def _in_rounds(asked: list[list[tuple]], tokenizer: AnyTokenizer) -> Iterator[list[list[tuple]]]:
    """The questions of each clip of a batch, some of them at a time: of a clip at most ROUND tokens, or one question.
    So memory does not grow with the number of questions."""
    waiting = [list(own) for own in asked]
    while any(waiting):
        now: list[list[tuple]] = [[] for _ in waiting]
        for own, some in zip(waiting, now, strict=True):
            room = ROUND
            while own:
                qa, shown = own[0]
                room -= sum(len(tokenizer.prompt(qa.question, shown) + tokenizer.encode(o)) for o in shown)
                if some and room < 0:
                    break
                some.append(own.pop(0))
        yield now


def _add_answers(
    result: Result, clips: Sequence[Clip], numbers: Sequence[int], asked: list, likelihoods: list[float], spoken: list,
    said: list, longest: int, tokenizer: AnyTokenizer, lenient: bool,
) -> None:  # fmt: skip
    """Add a round's answers: the options' `likelihoods`, and what was `said` in fewer than `longest` tokens."""
    likelihood = iter(likelihoods)
    for b, n in enumerate(numbers):
        for qa, shown in asked[b]:
            task = task_name(clips[n], qa)
            likely = [next(likelihood) for _ in shown]
            picked = shown[int(np.argmax(likely))]
            result.add("choice", task, n, qa, picked, picked == qa.answer)
            result.chance[task].append(0 if task in GENERATED else 1 / len(shown))
        for qa, ids in zip(spoken[b], said[b], strict=True):
            ended, text = len(ids) < longest, tokenizer.decode(ids)  # if cut, "red" may go on
            right = ended and normalised(text, lenient) == normalised(qa.answer, lenient)
            result.add("generated", task_name(clips[n], qa), n, qa, text + "…" * (not ended), right)


def share_losses(reader: Reader) -> None:
    """Tell every process which clips any of them could not read, or not fully."""
    for broken, skipped in distributed.gather((reader.broken, reader.skipped)):
        reader.broken |= broken
        reader.skipped |= skipped


def judge(
    model: VLM,
    clips: Sequence[Clip],
    reader: Reader,
    k: float,
    train_clips: Sequence[Clip] = (),
    blind: bool = False,
    tokenizer: AnyTokenizer = TOKENIZER,
    lenient: bool = False,
    unpruned: tuple[VLM, AnyTokenizer] | None = None,
    shipped: dict | None = None,
) -> tuple[str, dict]:
    """Evaluate a model with and without the video. Returns the table and more, as text to print, and its numbers, which
    are to be saved before: who reads the text may have closed the pipe. `train_clips` are for the
    look-up baseline. A `blind` model never gets the video. A model `unpruned` is run at k = 0, for `why_wrong`. If a
    `shipped` model's answers are given (`training/config.py`), the differences from it are added."""
    without = model.encode_blind
    how = dict(tokenizer=tokenizer, lenient=lenient)
    result = evaluate(model, clips, reader, k, without if blind else None, **how)
    unseeing = evaluate(model, clips, reader, 0.0, without, generate=False, name="blind", **how)
    lookup = look_up(train_clips, clips, lenient) if train_clips else None
    said = [table(result, unseeing, lookup)]
    said += filter(None, [broken_clips(reader.broken, reader.skipped).rstrip("\n")])
    if warning := dead(Health.of(result.health)):
        said.append(f"warning: {warning}")
    numbers = summarise(result, unseeing, lookup)
    if shipped and shipped["fingerprint"] == fingerprint(clips):
        text, numbers["against_unpruned"] = against(result, shipped["answers"])
        said.append(f"\n{text}")
    elif shipped:
        said.append(
            f"not compared with the unpruned model, which was run on test set {shipped['fingerprint']}: to compare,"
            " leave out --data, --test-clips, --train-clips, --panels and --split"
        )
    said.append(examples(result.said, clips))
    if unpruned:
        whole = evaluate(
            unpruned[0], clips, reader, 0.0, generate=False, name="unpruned", tokenizer=unpruned[1], lenient=lenient
        )
        numbers["why_wrong"] = why_wrong(result, whole)
        said.append(f"\n{wrong_table(result, numbers['why_wrong'])}")
        if unpruned[0] is model:
            note = "note: compared with this model, unpruned. If it was trained with pruning, give another after --why"
            said.append(note)
    return "\n".join(said), numbers


def _readable(clips: Sequence[Clip], reader: Reader) -> Iterator[tuple[int, Video]]:
    """The readable clips of this process's share, as (number, video)."""
    for n in range(distributed.rank(), len(clips), distributed.world_size()):
        with suppress(VideoError):
            yield n, reader(clips[n])


def task_name(clip: Clip, qa: QA) -> str:
    """The task's name in every table: "image/task" for an image."""
    return f"image/{qa.task}" if clip.kind == "image" else qa.task


def option_likelihoods(output) -> torch.Tensor:
    """The log-likelihood of each branch's answer, summed over its tokens and the end token: (R,). Without the end,
    "number 7" would always be at least as likely as "number 77"."""
    log_p = output.logits.log_softmax(-1).gather(1, output.targets[:, None]).squeeze(1)
    sums = log_p.new_zeros(int(output.branch[-1]) + 1)
    return sums.index_add(0, output.branch, log_p)


def evidence_per_cell(clip: Clip, video: Video, side: int) -> dict[str, np.ndarray]:
    """For each task of the clip's kind, how many pixels of each cell its answers depend on, without frame 0:
    {task: (T, side²) int}. `side`: cells in a row. Results are cached."""
    return _evidence_per_cell(clip.split, clip.kind, clip.seed, tuple(video.times), video.frames.shape[1], side)


@functools.lru_cache(maxsize=10000)
def _evidence_per_cell(split: str, kind: str, seed: int, times: tuple, size: int, side: int) -> dict[str, np.ndarray]:
    scene = world.make_scene(split, kind, seed)
    of = {task: tuple(q for q in scene.questions if q.task == task) for task in world.TASKS[kind]}
    return {task: _in_cells(scene, questions, times, size, side) for task, questions in of.items()}


def _in_cells(scene: Scene, questions: tuple[Question, ...], times: tuple, size: int, side: int) -> np.ndarray:
    """How many pixels of each cell the answers to these questions depend on: (T, side²) int."""
    pixels = evidence(scene, questions, np.array(times), size)
    return pixels.reshape(len(times), side, size // side, side, size // side).sum((2, 4)).reshape(len(times), -1)


@functools.lru_cache(maxsize=10000)
def _objects_in_cells(clip: Clip, times: tuple, size: int, side: int) -> dict[str, list[np.ndarray]]:
    """As `evidence_per_cell`, but object by object, for the one question of each task (`pick_questions`)."""
    scene, objects = world.make_scene(clip.split, clip.kind, clip.seed), {}
    asked = {(qa.task, qa.question) for qa, _ in pick_questions(clip)}
    for q in scene.questions:
        if (q.task, q.text) in asked:
            apart = (_in_cells(scene, (replace(q, evidence=(o,)),), times, size, side) for o in q.evidence)
            objects[q.task] = [pixels for pixels in apart if pixels.any()]
    return objects


def _count_kept(
    result: Result, encoded: Encoded, clips: Sequence[Clip], videos: Sequence, numbers: Sequence[int]
) -> None:
    """Add a batch's kept cells, rows, kept evidence and scorer's health to the result. `numbers`: of the clips."""
    if encoded.keep is None:
        return
    result.health += sums(encoded).cpu().numpy()
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
        for task, share in kept_shares(clip, video, keep[b, :T]).items():
            result.shares[task][numbers[b]] = share


def kept_shares(clip: Clip, video: Video, keep: np.ndarray) -> dict[str, float | None]:
    """How much of what each task's question depends on is visible in the kept cells, `keep` (T, C) bool.
    For an object it is the share of its pixels in kept cells, in the best frame after frame 0. For several objects it
    is the smallest of their shares, and None if no frame shows any. Empty for images and for clips of your own."""
    if clip.kind in ("image", OWN):
        return {}
    best = lambda x: float(((x * keep).sum(1) / x.sum(1).clip(min=1)).max())  # (T, C) pixels
    objects = _objects_in_cells(clip, tuple(video.times), video.frames.shape[1], round(keep.shape[1] ** 0.5))
    return {task: min(map(best, of), default=None) for task, of in objects.items()}


def look_up(train: Sequence[Clip], test: Sequence[Clip], lenient: bool = False) -> dict[str, float]:
    """The look-up baseline: accuracy per task if we answer without the video, by the training answers alone.
    It picks the shown option that was the commonest training answer to the same question text, and for an open task the
    commonest of all answers. Times in a question are ignored. Ties and unknown questions count as the chance to guess
    right. Texts are compared as `normalised`."""
    plain = lambda question: re.sub(r"\d+\.\d", "#", normalised(question))
    answers: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for clip in train:
        for qa in clip.qa:
            answers[clip.kind, plain(qa.question)][normalised(qa.answer, lenient)] += 1
    right = defaultdict(list)
    for clip in test:
        for qa, shown in pick_questions(clip):
            seen = answers[clip.kind, plain(qa.question)]
            options = list(seen) or [""] if qa.task in GENERATED else [normalised(o, lenient) for o in shown]
            best = [option for option in options if seen[option] == max(seen[o] for o in options)]
            right[task_name(clip, qa)].append((normalised(qa.answer, lenient) in best) / len(best))
    return {task: float(np.mean(values)) for task, values in right.items()}


def parse_k(text: str) -> float:
    """k from a command line, refused with the message of `check_k`."""
    try:
        check_k(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return float(text)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("eval", __doc__)
    parser.add_argument("checkpoint", nargs="?", default="runs/cpu/checkpoint.pt", help="the checkpoint to evaluate")
    parser.add_argument("--k", type=parse_k, help="share of cells to remove; as in training if not given")
    parser.add_argument("--max-frames", type=int, help="most frames of a clip; as in training if not given")
    parser.add_argument("--scorer", help="stts, cosine, random or my_file.py:MyScorer; as in training if not given")
    parser.add_argument("--clips", type=int, help="test clips of each kind; as in training if not given")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which held-out clips to evaluate on")
    panels = range(world.MOST_PANELS + 1)
    parser.add_argument("--panels", type=int, choices=panels, help="distractor panels; as in training if not given")
    parser.add_argument("--data", help="folder of the toy world's clips (default: data), or your own mine.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random scorer")
    parser.add_argument("--lenient", action="store_true", help="ignore case and a final full stop in generated answers")
    parser.add_argument(
        "--why", nargs="?", const="", metavar="CHECKPOINT",
        help="also say why answers were wrong, compared with this model, unpruned; by default with the same model",
    )  # fmt: skip
    parser.add_argument("--json", help="write the scores to this file, too")
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    with one_line_errors(parser.prog), distributed.processes(torch.device("cuda" if cuda else "cpu")) as device:
        run(args, device)


def run(args: argparse.Namespace, device: torch.device) -> dict:
    """Evaluate as the command line says. Prints the table and returns what --json writes."""
    require(-(2**63) <= args.seed < 2**63, "--seed {}: give a number from -2^63 to 2^63 - 1", args.seed)
    torch.manual_seed(args.seed)
    check_outputs([args.json] if args.json else [])  # refuse it now, not after the work
    model, state, tokenizer = checkpoint.load_trained(args.checkpoint, device, args.scorer)
    train = state["train_config"]
    own = "{} learned from clips of your own: give --data mine.jsonl, clips to judge it by"
    require(args.data or not is_own(train["data"]), own, args.checkpoint)
    args.data = args.data or "data"
    inputs = [args.checkpoint, args.why, (args.scorer or "").rpartition(":")[0]]
    inputs += [index for index in (args.data, train["data"]) if is_own(index)]
    check_outputs([args.json] if args.json else [], [*filter(None, inputs)])
    frames = train["max_frames"] if args.max_frames is None else args.max_frames
    k = train["k"] if args.k is None else args.k
    number = train.get("test_clips", 200) if args.clips is None else args.clips
    if number < 1 or frames < 1:
        raise ValueError(f"--clips {number}, --max-frames {frames}: give at least 1")
    blind = train.get("blind", False)  # a setting of stts_mini.lab
    if blind and (args.k is not None or args.scorer):
        raise ValueError(f"{args.checkpoint} was trained blind: leave out --k and --scorer, which change nothing")
    unpruned = None if args.why is None else (model, tokenizer)
    if unpruned:
        require(k > 0 and not blind, "--why is for a pruned model: give a --k above 0")
        require(not is_own(args.data), "--why is for the toy world's clips, whose evidence is known: leave out --data")
    if args.why:
        other, _, words = checkpoint.load_trained(args.why, device, "random")  # unpruned, so the scorer is not used
        sizes = model.config.vit.image_size, other.config.vit.image_size
        require(sizes[0] == sizes[1], "frames of {} pixels, of {} in {}: give a model of the same", *sizes, args.why)
        unpruned = other, words
    if k >= 0.8 and frames < 32:
        print(f"note: at k = {k} and {frames} frames, any scorer keeps little but frame 0: give 32 frames or more")
    clips, asked = distributed.in_turn(lambda: clips_to_judge(args, train, number))
    reader = Reader(frames, model.config.vit.image_size, train["fps"])
    trained, scorer = train.get("scorer", "stts"), args.scorer or model.config.scored_by
    trained = trained if train["k"] else "unpruned, no scorer"
    pattern = f", spread {model.config.spread}" * bool(model.config.spread)  # the model's, for any scorer
    name = "blind" if blind else f"scorer {scorer} (trained: {trained}){pattern}, k = {k}"
    print(printable(f"{args.checkpoint} (step {state['step']}, seed {train['seed']}), {name}, up to {frames} frames"))
    count = f"{len(clips)} clips" if is_own(args.data) else f"{number} clips of each kind"
    which = args.data if is_own(args.data) else f"{args.split} set"
    seeds = f"{count}, seed of this evaluation {args.seed}" + ", lenient" * args.lenient
    print(printable(f"{which} {fingerprint(clips)}: {seeds}"))
    text, numbers = judge(model, clips, reader, k, learned_from(asked, state), blind, tokenizer, args.lenient, unpruned)
    summary = dict(
        checkpoint=str(args.checkpoint), step=state["step"], scorer=scorer, k=k, max_frames=frames, seed=args.seed,
        lenient=args.lenient, split=args.split, fingerprint=fingerprint(clips), torch=torch.__version__,
        train_config=train, **numbers,
    )  # fmt: skip
    if args.json and distributed.rank() == 0:
        write_json(args.json, summary)
    print(text)
    return summary


def learned_from(index: Path, state: dict) -> Sequence[Clip]:
    """The training clips, for the look-up: () if the file is gone, or is another one of that name."""
    if not index.is_file():
        return ()
    with suppress(ValueError):
        clips = load_clips(index)
        if not is_own(state["train_config"]["data"]) or fingerprint(clips) == state.get("clips"):
            return clips
    print(printable(f"note: {index} is not what the model learned from, so there is no look-up"))
    return ()


def clips_to_judge(args: argparse.Namespace, train: dict, number: int) -> tuple[list[Clip], Path]:
    """The clips that the command line names (`number` of each kind in the toy world), and the file of the training
    clips, for the look-up. Raises ValueError for a missing folder or one with other files, so that a typing error does
    not fill it with the toy world's clips."""
    if is_own(args.data):
        world_only = "--clips, --split and --panels are for the toy world: leave them out"
        require((args.clips, args.split, args.panels) == (None, "test", None), world_only)
        return load_clips(args.data, judged=True), Path(train["data"])
    there = Path(args.data).is_dir()  # else it may be a typing error
    require(holds_worlds(args.data) if there else args.data == "data", WORLD_FOLDER, args.data)
    counts = {kind: train["train_clips"].get(kind, 0) for kind in world.TASKS}
    kinds, size = [kind for kind, count in counts.items() if count], train.get("video_size", train["image_size"])
    panels = train.get("panels", world.MOST_PANELS) if args.panels is None else args.panels
    clips = held_out(args.data, size, number, args.split, kinds, panels)
    return clips, index_file(args.data, "train", counts, size, panels)


if __name__ == "__main__":
    main()
