"""The passes that `bench.py` times: a model of a given shape, random frames, and scores drawn at random.

Weights and frames are random, which changes no time. Frames differ from one another in their drawn scores as much as
cells within a frame do. Untrained scores would spread the kept cells evenly, and that is easy to pack. The model's own
scorer runs and gets its gradient all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from stts_mini.data.batches import TOKENIZER
from stts_mini.data.progress import in_turns
from stts_mini.data.tokenizer import END
from stts_mini.lab.speed import flops
from stts_mini.llm import LLMConfig
from stts_mini.model import VLM, Encoded, VLMConfig, check_scores
from stts_mini.scorer import find_scorer
from stts_mini.sequence import Batch
from stts_mini.training.config import TrainConfig
from stts_mini.training.step import autocast, compile_blocks, now, recompute
from stts_mini.vit import ViTConfig

PROMPT, ANSWER = 14, 2  # tokens of the one question that is asked of a video, and of its answer


@dataclass(frozen=True)
class Shape:
    """A model to time.

    stamp      tokens of a time stamp
    cuda_only  whether it is skipped elsewhere
    recompute  whether the backward pass recomputes its blocks, because what they would keep does not fit
    varlen, compile    the flags of that name
    """

    config: VLMConfig
    stamp: int = 1
    cuda_only: bool = False
    recompute: bool = False
    varlen: bool = False
    compile: bool = False


SHAPES = {
    # 25 blocks, 9×9 patches, w = 3, l = 3. ViT, LLM and the LLM's quadratic part have Molmo2-4B's shares of the cost of
    # 2 × 64 frames. Attention has 18% of a ViT block's cost, there it has 10%
    "scaled": Shape(
        VLMConfig(
            ViTConfig(36, 4, 64, 25, 1, 240), LLMConfig(len(TOKENIZER), 256, 12, 4, 2, 64, 768),
            w=3, score_after=3, scorer_heads=1, scorer_mlp=240, connector_mlp=768, taps=(-7, -1),
        )
    ),
    # the same for a third of the time, but attention has 31% of a block's cost, and small operations take their toll
    "narrow": Shape(
        VLMConfig(
            ViTConfig(36, 4, 32, 25, 1, 120), LLMConfig(len(TOKENIZER), 160, 13, 2, 1, 32, 400),
            w=3, score_after=3, scorer_heads=1, scorer_mlp=120, connector_mlp=400, taps=(-7, -1),
        )
    ),
    "toy": Shape(TrainConfig().model),
    "so400m": Shape(
        dataclasses.replace(flops.PAPER, llm=LLMConfig(151936, 1024, 28, 16, 8, 128, 3072), connector_mlp=3072),
        stamp=4, cuda_only=True, recompute=True,  # 2 × 64 frames, unpruned, would keep 142 GB, 1 × 256 304 GB
    ),
}  # fmt: skip


class Uneven(nn.Module):
    """The model's own scorer, with its cost and its gradient, but with drawn scores instead of its own."""

    def __init__(self, scorer: nn.Module, videos: int, frames: int, cells: int):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        level = torch.randn(videos, frames, 1, generator=draw) + torch.randn(videos, frames, cells, generator=draw)
        self.scorer, self.drawn = scorer, level.sigmoid()
        self.injects_bias = getattr(scorer, "injects_bias", False)

    def forward(self, x: Tensor, num_frames: Tensor | None = None) -> Tensor:
        own = check_scores(self.scorer(x, num_frames), tuple(self.drawn.shape))
        return self.drawn.to(own) + (own - own.detach())


@dataclass
class Job:
    """A model, a batch, and an encoder with uneven scores: what is timed.

    known   what the encoder keeps at each k, once it was asked for
    warm    whether a pass has run, so that a CPU's memory is there
    """

    model: VLM
    shape: Shape
    batch: Batch
    encode: Callable[..., Encoded]
    device: torch.device
    known: dict[float, Encoded] = field(default_factory=dict)
    warm: bool = False

    @property
    def load(self) -> dict[str, int]:
        """How many videos, and frames of each."""
        return dict(videos=len(self.batch.num_frames), frames=self.batch.frames.shape[1])

    def train(self, k: float) -> None:
        """Fresh gradients of one batch."""
        with autocast(self.device):
            output = self.model(self.batch, k, self.encode)
            loss = output.task_loss + output.sim_loss
        loss.backward()
        self.model.zero_grad()

    def infer(self, k: float, new_tokens: int = 1) -> None:
        """From frames to the first new token, or beyond."""
        with autocast(self.device):
            self.model.generate(self.batch, k, new_tokens, self.encode)

    def encoded(self, k: float) -> Encoded:
        """What the encoder keeps. It is encoded once, for training and inference together."""
        if k not in self.known:
            with autocast(self.device), torch.no_grad():
                self.known[k] = self.encode(self.batch.frames, self.batch.num_frames, k)
        return self.known[k]

    def work(self, encoded: Encoded, k: float, what: str) -> flops.Work:
        """What had to be done."""
        pairs = zip(encoded.kept, encoded.shown, strict=True)
        kept = [cells[real].tolist() for cells, real in pairs]
        text = [[(PROMPT, ANSWER if what == "training" else 0)]] * len(kept)
        return flops.needed(self.shape.config, kept, k, text, self.shape.stamp)

    def counted(self, work: flops.Work, what: str) -> dict[str, int]:
        """Multiply-adds of each stage."""
        training = what == "training"
        return flops.multiply_adds(self.shape.config, work, training, training and self.shape.recompute)

    def turns(self, run: Callable[[float], None], ks: Sequence[float], rounds: int) -> dict | None:
        """Seconds of run(k) in every round, for each k. None if it does not fit. On CUDA every k is warmed up, because
        each may need its own kernels. On a CPU the first one is, once, because it takes the most memory: all others
        find it there."""
        warm = ks if self.device.type == "cuda" else () if self.warm else ks[:1]
        self.warm = True
        try:
            return in_turns(run, ks, rounds, self.now, warm)
        except torch.OutOfMemoryError:
            self.model.zero_grad()
            return None

    def now(self) -> float:
        """Seconds. On CUDA it waits for the work to be done."""
        return now(self.device)


def build(shape: Shape, device: torch.device) -> VLM:
    """A model that never says END, so that every answer is as long as it may be."""
    find_scorer(shape.config.scored_by)  # a fresh process does not know one in a user's file yet
    torch.manual_seed(0)
    with torch.device(device):
        model = VLM(shape.config)
    model.llm.embed_tokens.weight.data[END] = 0
    model.varlen = shape.varlen
    if shape.compile:
        compile_blocks(model)
    if shape.recompute:
        recompute(model)
    return model


def job(model: VLM, shape: Shape, videos: int, frames: int, device: torch.device) -> Job:
    """Random frames, one question a video."""
    config, draw = shape.config, torch.Generator().manual_seed(1)
    size = config.vit.image_size
    pixels = torch.randint(256, (videos, frames, 3, size, size), dtype=torch.uint8, generator=draw)
    word = min(len(TOKENIZER), config.llm.vocab_size) - 1
    stamps = [[[word] * shape.stamp] * frames] * videos
    branches = [[([word] * PROMPT, [word] * ANSWER)]] * videos
    batch = Batch(pixels.to(device), torch.tensor([frames] * videos), stamps, branches)
    scorer = Uneven(model.scorer, videos, frames, config.cells)
    return Job(model, shape, batch, partial(model.encode_video, scorer=scorer), device)
