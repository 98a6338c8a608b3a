"""Every setting of a training run, the presets, and the flags made from them.

`TrainConfig` has one field per setting. `python -m stts_mini.train --preset smoke --k 0.3` starts from a preset and
overrides fields. Whatever can be derived is derived, such as `VLMConfig`. `describe` says what a run would need.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from stts_mini.data.batches import TOKENIZER
from stts_mini.data.clips import is_own
from stts_mini.data.files import print_any_text, require
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import check_k, num_removed
from stts_mini.scorer import find_scorer
from stts_mini.toy.world import MOST_PANELS, TASKS
from stts_mini.vit import ViTConfig


def setting(default, text: str, may_be_0: bool = False):
    """A field with a help text. A dict holds a count of each kind of clip. Numbers are positive, and some may be 0."""
    kept = dict(metadata={"help": text, "may_be_0": may_be_0})
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), **kept)
    return field(default=default, **kept)


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Raises ValueError for impossible values."""

    # what is trained on what
    k: float = setting(0.5, "share of the cells to remove, 0 ≤ k < 1. 0 trains the unpruned model", may_be_0=True)
    scorer: str = setting("stts", "what scores the cells: stts, cosine, random, or my_file.py:MyScorer")
    init: str = setting("", "checkpoint of an unpruned model to start from, without its scorer")
    data: str = setting("data", "folder of the world's clips, or mine.jsonl: your own clips to train on")
    val: str = setting("", "with --data mine.jsonl: your own clips to judge by")
    out: str = setting("runs/cpu", "folder of checkpoint, log and pictures")
    train_clips: dict[str, int] = setting(dict(short=2000, image=400, brief=1100), "training clips of each kind")
    test_clips: int = setting(200, "held-out clips of each kind, to judge by")
    panels: int = setting(MOST_PANELS, "distractor panels in the world's scenes: 0, 1 or 2", may_be_0=True)
    max_frames: int = setting(16, "frames of a clip, at most")
    fps: float = setting(2.0, "frames to look at per second of a clip")
    # the optimisation
    steps: int = setting(1400, "training steps")
    stages: dict[str, int] = setting(
        dict(image=250, brief=450), "first steps, unpruned, on one kind of clips after another, or none"
    )
    batch_size: int = setting(12, "clips in a step")
    accumulate: int = setting(1, "cut a step's batch into so many parts, to save memory")
    questions: int = setting(16, "questions asked about each clip")
    lr: float = setting(2e-3, "AdamW's learning rate (embeddings, norms, biases)")
    muon_lr: float = setting(0.004, "Muon's learning rate (hidden matrices). 0: AdamW for all", may_be_0=True)
    scorer_lr_ratio: float = setting(
        1.0, "the scorer's learning rates, times those of the LLM. 0: it never learns", may_be_0=True
    )
    vision_lr_ratio: float = setting(
        1.0, "the ViT's and connector's learning rates, times those of the LLM", may_be_0=True
    )
    sim_weight: float = setting(30.0, "λ, the weight of the auxiliary loss. The paper has 1", may_be_0=True)
    warmup: int = setting(20, "steps of linear warm-up. After the stages, a cosine to zero", may_be_0=True)
    seed: int = setting(0, "random seed of weights, data order and everything else", may_be_0=True)
    # the model
    image_size: int = setting(48, "side of a frame in pixels")
    patch_size: int = setting(8, "side of a patch in pixels")
    w: int = setting(2, "side of a cell in patches")
    vit_width: int = setting(64, "D, the ViT's width")
    vit_depth: int = setting(6, "ViT blocks")
    vit_heads: int = setting(2, "ViT heads")
    vit_mlp: int = setting(256, "width of the ViT's MLP")
    score_after: int = setting(0, "l: score after this block (0-based), prune after the next", may_be_0=True)
    bias: str = setting("log", "score to attention bias: log, rescaled or none")
    llm_width: int = setting(128, "W, the LLM's width")
    llm_depth: int = setting(4, "LLM layers")
    llm_heads: int = setting(4, "LLM query heads")
    llm_kv_heads: int = setting(2, "LLM key/value heads")
    llm_head_dim: int = setting(32, "width of an LLM head")
    llm_mlp: int = setting(256, "width of the LLM's SwiGLU, and of the connector's")
    # how it runs
    device: str = setting("auto", "auto, cpu, cuda or mps")
    compile: bool = setting(False, "torch.compile the blocks: takes a minute at first, worth it in long runs")
    recompute: bool = setting(False, "activation checkpointing: less memory, a third more time")
    varlen: bool = setting(False, "train with CUDA's kernel for packed rows (FlashAttention) instead of masks")
    cache_gb: float = setting(2.0, "memory for decoded clips", may_be_0=True)
    workers: int = setting(0, "processes that draw batches while a step is computed (Linux)", may_be_0=True)
    save_every: int = setting(100, "steps between checkpoints")

    # settings that only lab/paper/train.py makes flags of
    thinning, coarse_steps, saliency_steps, spread, blind = 1.0, 0, 0, 0.0, False
    scorer_steps = 400

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, may_be_0 = getattr(self, f.name), f.metadata["may_be_0"]
            kind = getattr(f.type, "__name__", f.type)
            kinds = {"int": int, "float": int | float, "bool": bool, "str": str, "dict[str, int]": dict}
            require(isinstance(value, kinds.get(kind, object)), "{} = {!r}: give {}", f.name, value, kind)
            if kind in ("int", "float") and (not 0 <= value < 2**63 or (value == 0 and not may_be_0)):
                large = ", and less than 2^63" * (value >= 2**63)
                raise ValueError(f"{f.name} = {value}: give {'0 or more' if may_be_0 else 'more than 0'}{large}")
        check_k(self.k)
        find_scorer(self.scorer)
        batch, parts, early = self.batch_size, self.accumulate, self.unpruned_steps
        require(batch % parts == 0, f"batch_size {batch} is not a multiple of accumulate {parts}: change one of them")
        both = self.varlen and self.compile
        require(not both, "varlen and compile do not work together: give one of the two")
        fewer = "give more --steps, or fewer in --stages"
        require(self.steps > early, f"steps = {self.steps}, but the first {early} are unpruned: {fewer}")
        longer = "warmup = {} steps, longer than the run of steps = {}: give a smaller --warmup"
        require(self.warmup <= self.steps, longer, self.warmup, self.steps)
        for name in ("train_clips", "stages"):
            for kind, count in getattr(self, name).items():
                due = f"give --{name.replace('_', '-')} KIND=COUNT,… of {', '.join(TASKS)}"
                good = kind in TASKS and isinstance(count, int) and count >= 0
                require(good, "{} has {}={!r}: {}", name, kind, count, due)
        if not is_own(self.data):
            self._check_world()
        _ = self.model  # raises ValueError for sizes that do not fit together, before anything starts

    def _check_world(self) -> None:
        """Raise ValueError unless the world has clips for all that is trained."""
        index, size = Path(self.data), self.video_size
        require(not self.val, f"val = {self.val!r} goes with clips of your own: give --data mine.jsonl")
        folder = index.suffix != ".json" and not index.is_file()
        require(folder, f"data = {self.data!r} is no folder: a list of clips of your own ends in .jsonl")
        require(self.panels <= MOST_PANELS, f"panels = {self.panels}: give 0, 1 or {MOST_PANELS}")
        require(size % 2 == 0, f"frames of {size} pixels: give an even --image-size, as H.264 needs")
        asked = any(count for kind, count in self.train_counts.items() if TASKS[kind])
        require(asked, "no training clips with questions: give --train-clips, such as short=2000")
        for kind, steps in self.stages.items():
            there = not steps or self.train_counts[kind]
            require(there, f"stages has {kind}={steps}, but there are no {kind} clips: add to --train-clips")

    @property
    def model(self) -> VLMConfig:
        """The model's own config."""
        vit = ViTConfig(
            self.image_size, self.patch_size, self.vit_width, self.vit_depth, self.vit_heads, self.vit_mlp
        )  # fmt: skip
        llm = LLMConfig(
            len(TOKENIZER), self.llm_width, self.llm_depth, self.llm_heads, self.llm_kv_heads, self.llm_head_dim,
            self.llm_mlp,
        )  # fmt: skip
        packed = max(self.vit_depth - self.score_after - 1 - VLMConfig.stages, 1)
        return VLMConfig(
            vit, llm, w=self.w, score_after=self.score_after, scorer_heads=self.vit_heads, scorer_mlp=self.vit_mlp,
            connector_mlp=self.llm_mlp, scored_by=self.scorer, taps=(-min(3, packed), -1), bias=self.bias,
            spread=self.spread,
        )  # fmt: skip

    @property
    def video_size(self) -> int:
        """Side of a frame in the world's files, in pixels."""
        return self.image_size

    @property
    def train_counts(self) -> dict[str, int]:
        """Training clips of every kind."""
        return {kind: self.train_clips.get(kind, 0) for kind in TASKS}

    @property
    def curriculum(self) -> dict[str, int]:
        """The stages before the clips come mixed. Clips of your own have none."""
        return {} if is_own(self.data) else self.stages

    @property
    def curriculum_steps(self) -> int:
        """Steps of all stages together."""
        return sum(self.curriculum.values())

    @property
    def unpruned_steps(self) -> int:
        """Steps before pruning begins."""
        return self.curriculum_steps + self.saliency_steps

    @property
    def late(self) -> tuple[str, ...]:
        """Tasks whose questions are all asked; then brief clips also show direction's two options (see `Sampler`). A
        model trained from nothing learned direction last, or never (tutorials/results/TRIED.md)."""
        return () if self.init else ("direction", "start")

    @property
    def lessons(self) -> int:
        """Steps of L_sim alone for a fresh scorer before pruning begins: as many as pruned steps, at most scorer_steps.

        >>> TrainConfig(stages={}, steps=200).lessons, TrainConfig().lessons, TrainConfig(scorer_lr_ratio=0.0).lessons
        (200, 400, 0)
        """
        learns = self.k and self.sim_weight and self.scorer_lr_ratio and not (self.blind or self.saliency_steps)
        return min(self.steps - self.unpruned_steps, self.scorer_steps) if learns else 0

    def learns_saliency(self, step: int) -> bool:
        """Whether the scorer's teacher at a step is saliency (`saliency.py`)."""
        return self.curriculum_steps <= step < self.unpruned_steps

    def k_at(self, step: int) -> float:
        """k at a step. It is 0 at first, because STTS starts from an unpruned model (paper §4).

        >>> config = TrainConfig(k=0.8, stages={"image": 10})
        >>> [config.k_at(step) for step in (0, 9, 10, 99)]
        [0.0, 0.0, 0.8, 0.8]
        """
        return self.k if step >= self.unpruned_steps else 0.0


# former settings, and what is done now
GONE = dict(k_ramp=0, clip_norm=1.0, detach_target=True, tensorboard=False, blind=False, elastic=False)


def upgraded(settings: dict) -> dict:
    """The settings of an older run under today's names. A setting in `GONE` is left out if it had that value, and the
    connector's width if it was the LLM's.

    >>> upgraded(dict(k=0.5, train_short=9, train_image=1, image_steps=4, k_ramp=0))
    {'k': 0.5, 'train_clips': {'short': 9, 'image': 1}, 'stages': {'image': 4}}
    """
    new = {name: value for name, value in settings.items() if name not in GONE or value != GONE[name]}
    if new.get("connector_mlp") == new.get("llm_mlp"):
        new.pop("connector_mlp", None)
    for name, old in (("train_clips", "train_{}"), ("stages", "{}_steps")):
        found = {kind: new.pop(old.format(kind)) for kind in TASKS if old.format(kind) in new}
        if found:
            new[name] = {kind: count for kind, count in found.items() if count}
    return new


SHIPPED = Path(__file__).parents[1] / "shipped"  # base0.pt, an unpruned model; unpruned.json, what its row answered
PRESETS: dict[str, dict] = {
    "cpu": {},
    "paper": dict(
        out="runs/paper", init=str(SHIPPED / "base0.pt"),
        train_clips=dict(short=3000, watch=1500, parade=1500, image=400), max_frames=32, fps=10.0, steps=400, stages={},
        questions=10, lr=1e-3, muon_lr=0.002, warmup=10, cache_gb=4.0,
    ),
    "smoke": dict(
        out="runs/smoke", train_clips=dict(short=96, watch=16, image=16, brief=16), test_clips=24, steps=20,
        stages=dict(image=4, brief=4), batch_size=8, questions=6, warmup=4, save_every=10,
    ),
    "gpu": dict(
        out="runs/gpu", train_clips=dict(short=20000, watch=6000, image=2000, brief=4000), test_clips=400,
        max_frames=64, steps=4000, stages=dict(image=500, brief=700), batch_size=64, accumulate=4, warmup=200,
        image_size=96, w=3, vit_width=384, vit_depth=14, vit_heads=6, vit_mlp=1536, score_after=2,
        llm_width=512, llm_depth=8, llm_heads=8, llm_kv_heads=4, llm_head_dim=64, llm_mlp=1536, cache_gb=32.0,
        workers=2, save_every=250,
    ),
}  # fmt: skip


def scaled(sizes: dict, scale: float) -> dict:
    """Widths, depths and heads of a larger or smaller model: `scale` times those of `sizes`, or else of the defaults.
    Heads and depths are rounded to whole numbers, at least 1. Heads keep their width, MLPs their ratio, and the dense
    blocks (0..l+1) their share.

    >>> new = scaled({}, 2)
    >>> new["vit_width"], new["vit_heads"], new["vit_depth"], new["score_after"], new["llm_width"], new["llm_kv_heads"]
    (128, 4, 12, 2, 256, 4)
    """
    old = {f.name: sizes.get(f.name, f.default) for f in dataclasses.fields(TrainConfig)}
    times = lambda name: max(round(old[name] * scale), 1)
    new = {name: times(name) for name in ("vit_depth", "vit_heads", "llm_depth", "llm_kv_heads")}
    new["llm_heads"] = new["llm_kv_heads"] * (old["llm_heads"] // old["llm_kv_heads"])
    new["score_after"] = max(round((old["score_after"] + 2) * new["vit_depth"] / old["vit_depth"]) - 2, 0)
    for part in ("vit", "llm"):
        width, heads = f"{part}_width", f"{part}_heads"
        new[width] = old[width] // old[heads] * new[heads]
        new[f"{part}_mlp"] = round(old[f"{part}_mlp"] * new[width] / old[width])
    return new


def parse_flags(
    argv: Sequence[str] | None,
    given: dict | None = None,
    config_type: type[TrainConfig] = TrainConfig,
    presets: dict[str, dict] = PRESETS,
    prog: str = "python -m stts_mini.train",
) -> tuple[TrainConfig, argparse.Namespace]:
    """A config from --preset, --scale and flags, and what is not a setting: resume, dry_run, preset, split, and `idle`,
    the flags without an effect. `given`: settings that override the preset. Flags override both."""
    what = "Train a video VLM with Spatio-Temporal Token Scoring, evaluate it and draw what it prunes."
    print_any_text()
    parser = argparse.ArgumentParser(prog, allow_abbrev=False, description=what)
    parser.add_argument("--preset", choices=tuple(presets), default="cpu", help="where to start from (default: cpu)")
    parser.add_argument("--scale", type=float, default=1.0, help="times widths, depths and heads, to whole heads")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="judge by these clips")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--dry-run", action="store_true", help="print parameters, tokens and memory, and stop")
    hints = typing.get_type_hints(config_type)
    for f in dataclasses.fields(config_type):
        values = {"default": getattr(config_type(), f.name)}
        values |= {name: preset[f.name] for name, preset in presets.items() if f.name in preset}
        shown = ", ".join(f"{name}: {as_text(value)}" for name, value in values.items())
        flag, kind = "--" + f.name.replace("_", "-"), hints[f.name]
        options = dict(default=argparse.SUPPRESS, help=f"{f.metadata['help']} ({shown})".replace("%", "%%"))
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif kind in (int, float, str):
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **options)
        else:
            parser.add_argument(flag, type=parse_counts, metavar="KIND=COUNT,…", **options)
    args = vars(parser.parse_args(argv))
    settings = {**presets[args["preset"]], **(given or {})}
    try:
        require(0 < args["scale"] < math.inf, "scale = {}: give more than 0", args["scale"])
        own = args["scale"] == 1 or not given
        require(own, "--scale is for models made from nothing: these weights have their sizes")
        if args["scale"] != 1:
            settings |= scaled(settings, args["scale"])
        flags = {f.name: args[f.name] for f in dataclasses.fields(config_type) if f.name in args}
        config = config_type(**{**settings, **flags})
    except ValueError as error:
        parser.error(str(error))
    rest = {name: args[name] for name in ("resume", "dry_run", "preset", "split")}
    return config, argparse.Namespace(**rest, idle=idle(config, flags))


def idle(config: TrainConfig, given: Iterable[str]) -> list[str]:
    """Which of the given settings have no effect beside the others, and why.

    >>> idle(TrainConfig(data="mine.jsonl", k=0.0), ["stages", "steps", "k"])
    ['--stages (--data has clips of your own)']
    """
    return [f"--{name.replace('_', '-')} ({why})" for name, why in without_effect(config, given).items()]


def without_effect(config: TrainConfig, given: Iterable[str]) -> dict[str, str]:
    """The settings of `idle` by name, and why."""
    learns = getattr(find_scorer(config.scorer), "injects_bias", False)
    taught = ("bias", "sim_weight", "scorer_lr_ratio", "scorer_steps")
    of_the_world = ("stages", "train_clips", "test_clips", "panels", "video_size")
    reasons = [
        (is_own(config.data), of_the_world, "--data has clips of your own"),
        (config.blind, ("k", "scorer", "spread", *taught), "--blind has no vision tokens"),
        (not config.k and not config.blind, ("scorer", "spread", *taught), "--k 0 prunes nothing"),
        (not learns, taught, f"the scorer {config.scorer} does not learn from it"),
        (bool(config.saliency_steps), ("sim_weight", "scorer_steps"), "--saliency-steps replace it"),
        (not config.sim_weight, ("scorer_steps",), "--sim-weight 0 teaches nothing"),
        (not config.scorer_lr_ratio, ("scorer_steps",), "--scorer-lr-ratio 0 teaches nothing"),
        (config.thinning == 1, ("coarse_steps",), "--thinning 1 leaves out no frame"),
    ]
    return {name: why for holds, names, why in reversed(reasons) if holds for name in names if name in given}


def parse_counts(text: str) -> dict[str, int]:
    """ "short=2000,image=400" → a count for each kind. "none" → no kind.

    >>> parse_counts("short=2000,image=400"), parse_counts("none")
    ({'short': 2000, 'image': 400}, {})
    """
    found = {}
    for pair in [] if text == "none" else text.split(","):
        kind, _, count = pair.partition("=")
        if kind not in TASKS or not count.isdecimal():
            hint = f"KIND=COUNT, such as short=2000, of {', '.join(TASKS)}; or none"
            raise argparse.ArgumentTypeError(f"{pair!r} is no {hint}")
        if kind in found:
            raise argparse.ArgumentTypeError(f"{kind} comes twice in {text!r}")
        found[kind] = int(count)
    return found


def as_text(value: object) -> str:
    """A setting's value as its flag takes it. Only the flags of a bool take none: --compile and --no-compile.

    >>> as_text({"image": 4, "brief": 2}), as_text({}), as_text(0.5)
    ('image=4,brief=2', 'none', '0.5')
    """
    if isinstance(value, dict):
        return ",".join(f"{kind}={count}" for kind, count in value.items()) or "none"
    return str(value)


def describe(config: TrainConfig, device: torch.device, model: VLM | None = None) -> str:
    """Parameters, tokens of a step and estimated memory of a run, as text."""
    if model is None:
        with torch.device("meta"):
            model = VLM(config.model)
    count = lambda module: sum(p.numel() for p in module.parameters())
    parts = ", ".join(f"{name} {count(part) / 1e6:.2f} M" for name, part in model.named_children())
    m, T, dense = model.config, config.max_frames, model.config.score_after + 2
    kept = m.cells * T - num_removed(0.0 if config.saliency_steps else config.k, m.cells, T)  # at the largest step
    row = kept + 3 * T + config.questions * 14  # a stamp and two markers a frame, about 14 tokens a question
    on_gpu = device.type == "cuda"
    activations = saved_floats(m, config, kept, row) * (2 if on_gpu else 4) / 1e9
    fixed = count(model) * 16 / 1e9  # weights, gradients, at most two moments, 4 bytes each
    num_clips = sum(config.train_counts.values())
    if is_own(config.data):  # one line a clip, not read yet
        index = Path(config.data)
        num_clips = index.read_bytes().count(b"\n") if index.is_file() else 0
    clips = min(num_clips * T * 3 * config.image_size**2 / 1e9, config.cache_gb)
    ahead = 3 * config.workers * config.batch_size * T * 3 * config.image_size**2 / 1e9  # two drawn, one pinned
    beside = f"decoded clips {clips:.1f}" + f", batches drawn ahead {ahead:.1f}" * bool(ahead)
    total = activations + fixed + 0.5 + (0 if on_gpu else clips + ahead)
    return "\n".join(
        [
            f"parameters: {count(model) / 1e6:.2f} M ({parts})",
            f"ViT: {dense} of {m.vit.depth} blocks dense ({100 * dense / m.vit.depth:.0f}%), {m.num_packed} packed;"
            f" {m.cells} cells of {m.w}×{m.w} patches in a frame",
            f"a step: {config.batch_size} clips of up to {T} frames; of a full clip's {m.cells * T} vision tokens"
            f" {kept} are kept; at most about {config.batch_size * row} LLM tokens",
            f"memory, estimated: {total:.1f} GB (activations {activations:.1f}, weights"
            f" and optimiser {fixed:.2f}, PyTorch 0.5, {f'on the GPU; {beside} beside it' if on_gpu else beside})",
        ]
    )


def saved_floats(m: VLMConfig, config: TrainConfig, kept: int, row: int) -> int:
    """About how many numbers a step keeps for its backward pass. kept: cells of a clip. row: its tokens in the LLM.

    A block keeps, per token, 11·D + 3·mlp (ViT) or 16·W + 4·mlp (LLM). With --recompute, each block keeps its input,
    and only one block at a time keeps everything."""
    clips = config.batch_size // config.accumulate
    patches, tokens = clips * config.max_frames * m.vit.num_patches, clips * row
    through_vit = patches * (m.score_after + 2) + clips * kept * m.w**2 * m.num_packed
    vit, llm = 11 * m.vit.width + 3 * m.vit.mlp, 16 * m.llm.width + 4 * m.llm.mlp
    if config.recompute:
        inputs = through_vit * m.vit.width + tokens * m.llm.depth * m.llm.width
        return inputs + max(patches * vit, tokens * llm)
    return through_vit * vit + tokens * m.llm.depth * llm
