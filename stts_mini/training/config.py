"""Every setting of a training run, the presets, and the flags made from them.

`TrainConfig` has one field per setting; `python -m stts_mini.train --preset smoke --k 0.3` starts from
a preset and overrides fields. `VLMConfig` and everything else that can be derived is. `describe` tells
what a config would take.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from stts_mini.data.batches import TOKENIZER
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, VLMConfig
from stts_mini.packing import check_k, num_removed
from stts_mini.scorer import find_scorer
from stts_mini.toy.world import TASKS
from stts_mini.vit import ViTConfig


def setting(default, text: str):
    """A field with a help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Raises ValueError for values that cannot be."""

    # what is trained on what
    k: float = setting(0.5, "share of the cells to remove, 0 ≤ k < 1; 0 trains the unpruned model")
    scorer: str = setting("stts", "who scores the cells: stts, cosine, random, or my_file.py:MyScorer")
    blind: bool = setting(False, "train without any vision tokens (the control)")
    init: str = setting("", "checkpoint of an unpruned model to start from; its scorer is left out")
    data: str = setting("data", "folder of the world's clips; or mine.jsonl, clips of your own to train on")
    val: str = setting("", "with --data mine.jsonl: the clips of your own to judge by")
    out: str = setting("runs/cpu", "folder of checkpoint, log and pictures")
    train_short: int = setting(2000, "short training clips")
    train_watch: int = setting(160, "long training clips in which something flashes up, and something grows")
    train_parade: int = setting(0, "long training clips through which four objects pass")
    train_image: int = setting(400, "one-frame training clips")
    train_brief: int = setting(1100, "training clips of 2.5 s, to learn time from")
    train_glance: int = setting(0, "training clips of 12 to 16 s, to learn the long tasks from")
    test_clips: int = setting(200, "held-out test clips of each kind")
    max_frames: int = setting(16, "frames of a clip, at most")
    fps: float = setting(2.0, "frames to look at per second of a clip")
    thinning: float = setting(1.0, "divide max_frames and fps by up to this much, anew in each step")
    coarse_steps: int = setting(0, "until this step, divide by all of --thinning: few frames are cheap to learn from")
    # the optimisation
    steps: int = setting(1600, "training steps")
    batch_size: int = setting(12, "clips in a step")
    accumulate: int = setting(1, "cut a step's batch into so many parts, to save memory")
    questions: int = setting(20, "questions asked about each clip")
    lr: float = setting(2e-3, "AdamW's learning rate (embeddings, norms, biases)")
    muon_lr: float = setting(0.004, "Muon's learning rate (hidden matrices); 0: AdamW for all")
    scorer_lr_ratio: float = setting(1.0, "the scorer's learning rates, times those of the LLM")
    vision_lr_ratio: float = setting(1.0, "the ViT's and connector's learning rates, times those of the LLM")
    image_steps: int = setting(400, "first steps, on one-frame clips only")
    brief_steps: int = setting(300, "next steps, on clips of 2.5 s only; nothing is pruned as yet")
    glance_steps: int = setting(0, "next steps, on clips of 12 to 16 s only; unpruned, too")
    saliency_steps: int = setting(
        0, "next steps, unpruned: the scorer learns what answers hang on, then stays (ours; no L_sim)"
    )
    k_ramp: int = setting(0, "then k grows to its value over so many steps; 0: at once")
    elastic: bool = setting(False, "draw k anew in each step, from 0 to --k: one model for every budget")
    sim_weight: float = setting(1.0, "λ, the weight of the auxiliary loss")
    warmup: int = setting(20, "steps of linear warm-up; after the curriculum, a cosine to zero")
    clip_norm: float = setting(1.0, "largest norm of the gradient")
    seed: int = setting(0, "of weights, data order and everything else")
    # the model
    image_size: int = setting(48, "side of a frame in pixels, as the model sees it")
    video_size: int = setting(48, "side of a frame in pixels, in the files")
    patch_size: int = setting(8, "side of a patch in pixels")
    w: int = setting(2, "side of a cell in patches")
    vit_width: int = setting(64, "D")
    vit_depth: int = setting(6, "ViT blocks")
    vit_heads: int = setting(2, "ViT heads")
    vit_mlp: int = setting(256, "width of the ViT's MLP")
    score_after: int = setting(0, "l: score after this block (0-based), prune after the next")
    bias: str = setting("log", "score to attention bias: log, rescaled or none")
    spread: float = setting(0.0, "weight of a fixed pattern that spreads kept cells over time; 0: off (ours)")
    detach_target: bool = setting(True, "cut the auxiliary target off from the gradient")
    connector_mlp: int = setting(256, "width of the connector's SwiGLU")
    llm_width: int = setting(128, "W")
    llm_depth: int = setting(4, "LLM layers")
    llm_heads: int = setting(4, "LLM query heads")
    llm_kv_heads: int = setting(2, "LLM key/value heads")
    llm_head_dim: int = setting(32, "width of an LLM head")
    llm_mlp: int = setting(256, "width of the LLM's SwiGLU")
    # how it runs
    device: str = setting("auto", "auto, cpu, cuda or mps")
    compile: bool = setting(False, "torch.compile the blocks")
    recompute: bool = setting(False, "activation checkpointing: less memory, a third more time")
    varlen: bool = setting(False, "train with CUDA's kernel for packed rows (FlashAttention), not with masks")
    tensorboard: bool = setting(False, "log to TensorBoard, too (pip install tensorboard)")
    cache_gb: float = setting(2.0, "memory for decoded clips")
    save_every: int = setting(100, "steps between checkpoints")

    def __post_init__(self):
        check_k(self.k)
        may_be_0 = {
            "k", "train_short", "train_watch", "train_parade", "train_image", "train_brief", "train_glance",
            "image_steps", "brief_steps", "glance_steps", "coarse_steps", "saliency_steps", "k_ramp", "warmup",
            "sim_weight", "spread", "muon_lr", "scorer_lr_ratio", "vision_lr_ratio", "cache_gb", "seed", "score_after",
        }  # fmt: skip
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type in ("int", "float")}
        for name, value in numbers.items():
            if not 0 <= value < math.inf or (value == 0 and name not in may_be_0):
                raise ValueError(f"{name} = {value}: give {'0 or more' if name in may_be_0 else 'more than 0'}")
        find_scorer(self.scorer)
        if self.video_size % 2:
            raise ValueError(f"video_size = {self.video_size}: give an even number, as H.264 needs")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}: change one of them"
            )
        if self.val and not self.own_data:
            raise ValueError(f"val = {self.val!r} goes with clips of your own: give --data mine.jsonl")
        if not self.own_data and (Path(self.data).suffix == ".json" or Path(self.data).is_file()):
            raise ValueError(f"data = {self.data!r} is no folder: a list of clips of your own ends in .jsonl")
        if not self.own_data and not any(self.train_counts[kind] for kind, tasks in TASKS.items() if tasks):
            raise ValueError(
                "no training clips at all: give --train-short, --train-watch, --train-parade or --train-image"
            )
        if self.varlen and self.compile:
            raise ValueError("varlen and compile have not been made to work together: give one of the two")
        if self.thinning < 1:
            raise ValueError(f"thinning = {self.thinning}: give 1 for every frame, or more")
        for kind, steps in self.stages:
            if steps and not self.train_counts[kind]:
                flags = f"give --train-{kind}, or --{kind}-steps 0"
                raise ValueError(f"{kind}_steps = {steps}, and train_{kind} = 0 clips for them: {flags}")
        if self.saliency_steps and not self.k:
            raise ValueError(
                f"saliency_steps = {self.saliency_steps} teach what to keep, and k = 0 keeps all: give --k"
            )
        if self.saliency_steps and self.llm_depth < 2:
            raise ValueError(
                f"saliency_steps = {self.saliency_steps} need an LLM of 2 layers or more: give --llm-depth 2"
            )
        if self.saliency_steps and self.blind:
            raise ValueError("blind training has no cells whose saliency could be learned: give --saliency-steps 0")
        if self.steps <= (taught := self.curriculum_steps + self.saliency_steps):
            remedy = "give more --steps, or fewer --image-steps, --brief-steps, --glance-steps or --saliency-steps"
            raise ValueError(f"steps = {self.steps} end within the curriculum of {taught} unpruned steps: {remedy}")
        _ = self.model  # sizes that do not fit each other are refused here, before anything starts

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
        packed = max(self.vit_depth - self.score_after - 2, 1)
        return VLMConfig(
            vit, llm, w=self.w, score_after=self.score_after, scorer_heads=self.vit_heads, scorer_mlp=self.vit_mlp,
            connector_mlp=self.connector_mlp, scored_by=self.scorer, taps=(-min(3, packed), -1), bias=self.bias,
            spread=self.spread, detach_target=self.detach_target,
        )  # fmt: skip

    @property
    def own_data(self) -> bool:
        """Whether to train on clips of your own."""
        return self.data.endswith(".jsonl")

    @property
    def train_counts(self) -> dict[str, int]:
        """Training clips of each kind."""
        return {kind: getattr(self, f"train_{kind}") for kind in TASKS}

    @property
    def stages(self) -> tuple[tuple[str, int], ...]:
        """The curriculum before all that is judged comes mixed: (kind, steps). Clips of your own have none."""
        if self.own_data:
            return ()
        return tuple((kind, getattr(self, f"{kind}_steps")) for kind in ("image", "brief", "glance"))

    @property
    def curriculum_steps(self) -> int:
        """Steps before the clips come mixed."""
        return sum(steps for _, steps in self.stages)

    def learns_saliency(self, step: int) -> bool:
        """Whether the scorer's teacher at a step is saliency (`saliency.py`)."""
        return 0 <= step - self.curriculum_steps < self.saliency_steps

    def k_at(self, step: int) -> float:
        """k at a step: 0 in the curriculum, for STTS starts from an unpruned model (paper §4), and while the scorer
        learns from saliency; then its value, reached over `k_ramp` steps; if `elastic`, a share of it, by lot.

        >>> config = TrainConfig(k=0.8, image_steps=10, brief_steps=0, k_ramp=4)
        >>> [config.k_at(step) for step in (9, 10, 11, 12, 13, 99)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
        """
        pruned = step - self.curriculum_steps - self.saliency_steps + 1
        share = np.random.default_rng((self.seed, 5, step)).random() if self.elastic else 1.0
        return round(self.k * share * min(pruned / max(self.k_ramp, 1), 1.0), 4) if pruned > 0 else 0.0


PRESETS: dict[str, dict] = {
    "cpu": {},
    "smoke": dict(
        out="runs/smoke", train_short=96, train_watch=16, train_image=16, train_brief=16, test_clips=24, steps=20,
        image_steps=4, brief_steps=4, batch_size=8, questions=6, warmup=4, save_every=10,
    ),
    "base": dict(
        out="runs/base", k=0.0, train_short=3000, train_watch=1500, train_parade=1500, max_frames=64, fps=10.0,
        train_glance=2000, thinning=5.0, coarse_steps=4100, steps=4600, questions=10, image_steps=400, brief_steps=400,
        glance_steps=700, save_every=50, cache_gb=4.0,
    ),
    "gpu": dict(
        out="runs/gpu", train_short=20000, train_watch=6000, train_image=2000, train_brief=4000, test_clips=400,
        max_frames=64, steps=4000, image_steps=500, brief_steps=700, batch_size=64, accumulate=4, warmup=200,
        image_size=96, video_size=96, patch_size=8, w=3, vit_width=384, vit_depth=14, vit_heads=6, vit_mlp=1536,
        score_after=2, connector_mlp=1536, llm_width=512, llm_depth=8, llm_heads=8, llm_kv_heads=4, llm_head_dim=64,
        llm_mlp=1536, cache_gb=32.0, save_every=250,
    ),
}  # fmt: skip


def parse_flags(argv: Sequence[str] | None, given: dict | None = None) -> tuple[TrainConfig, argparse.Namespace]:
    """A config from --preset and flags, and what is not a setting: resume, dry_run, preset. `given`: settings that
    go before the preset's, and that flags override."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.train",
        allow_abbrev=False,
        description="Train a video VLM with Spatio-Temporal Token Scoring, evaluate it and draw what it prunes.",
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu", help="where to start from (default: cpu)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--dry-run", action="store_true", help="print parameters, tokens and memory, and stop")
    hints = typing.get_type_hints(TrainConfig)
    for f in dataclasses.fields(TrainConfig):
        presets = "".join(f", {name}: {p[f.name]}" for name, p in PRESETS.items() if f.name in p)
        text = f"{f.metadata['help']} (default: {f.default}{presets})".replace("%", "%%")
        flag = "--" + f.name.replace("_", "-")
        options = dict(default=argparse.SUPPRESS, help=text)
        if hints[f.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            kind = hints[f.name]
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **options)
    args = parser.parse_args(argv)
    flags = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig) if hasattr(args, f.name)}
    try:
        config = TrainConfig(**{**PRESETS[args.preset], **(given or {}), **flags})
    except ValueError as error:
        parser.error(str(error))
    return config, argparse.Namespace(resume=args.resume, dry_run=args.dry_run, preset=args.preset)


def describe(config: TrainConfig, device: torch.device, model: VLM | None = None) -> str:
    """Parameters, tokens of a step and estimated memory of a run, as text."""
    if model is None:
        with torch.device("meta"):
            model = VLM(config.model)
    count = lambda module: sum(p.numel() for p in module.parameters())
    parts = ", ".join(f"{name} {count(part) / 1e6:.2f} M" for name, part in model.named_children())
    m, T, B = model.config, config.max_frames, config.batch_size // config.accumulate
    k = 0.0 if config.saliency_steps or config.elastic or config.k_ramp else config.k  # some full clips lose little
    kept = m.cells * T - num_removed(k, m.cells, T)
    row = kept + 3 * T + config.questions * 14  # stamps, two markers; a question is about 14 tokens
    patches, kept_patches = B * T * m.vit.num_patches, B * kept * m.w**2
    # floats that a block keeps for the backward pass, per token: 11·D + 3·mlp (ViT), 16·W + 4·mlp (LLM)
    dense = m.score_after + 2
    vit, llm = 11 * m.vit.width + 3 * m.vit.mlp, 16 * m.llm.width + 4 * m.llm.mlp
    if config.recompute:  # the input of each, and all of one block at a time
        floats = (patches * dense + kept_patches * m.num_packed) * m.vit.width + B * row * m.llm.depth * m.llm.width
        floats += max(patches * vit, B * row * llm)
    else:
        floats = (patches * dense + kept_patches * m.num_packed) * vit + B * row * m.llm.depth * llm
    activations = floats * (2 if device.type == "cuda" else 4)
    fixed = count(model) * 16  # weights, gradients, at most two moments, 4 bytes each
    num_clips = sum(config.train_counts.values())
    if config.own_data:  # a line each; whether they can be read is told when they are loaded
        index = Path(config.data)
        num_clips = index.read_bytes().count(b"\n") if index.exists() else 0
    clips = min(num_clips * T * 3 * config.image_size**2 / 1e9, config.cache_gb)
    lines = [
        f"parameters: {count(model) / 1e6:.2f} M ({parts})",
        f"ViT: {dense} of {m.vit.depth} blocks dense ({100 * dense / m.vit.depth:.0f}%), {m.num_packed} packed;"
        f" {m.cells} cells of {m.w}×{m.w} patches in a frame",
        f"a step: {config.batch_size} clips of up to {T} frames; of a full clip's {m.cells * T} vision tokens {kept}"
        f" are kept; at most about {config.batch_size * row} LLM tokens",
        f"memory, estimated: {(activations + fixed) / 1e9 + clips * (device.type != 'cuda') + 0.5:.1f} GB (activations"
        f" {activations / 1e9:.1f}, weights and optimiser {fixed / 1e9:.2f}, PyTorch 0.5, "
        + (
            f"on the GPU; decoded clips {clips:.1f} beside it)"
            if device.type == "cuda"
            else f"decoded clips {clips:.1f})"
        ),
    ]
    return "\n".join(lines)
