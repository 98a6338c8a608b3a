"""The rows of the paper's tables: what each one trains, how its model is asked, and which table needs it.

A row is one trained model. `METHODS` says what a method is called and what it changes in the settings of the training
run. `TABLES` says which rows a table needs, and `askings` how a row's model is asked at test time. `reproduce.py` makes
the rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from stts_mini.data.files import require
from stts_mini.lab.paper.rivals.known import RIVALS
from stts_mini.lab.paper.train import BASE, PaperConfig
from stts_mini.packing import scaled_frames
from stts_mini.toy.world import MOST_PANELS
from stts_mini.training.config import PRESETS

FRAMES = 32  # of a clip, where a method says nothing else
SIZE = 48  # of a frame, in pixels
SEEDS = (0, 1, 2)
BASES = 2  # row seed s starts from base s mod 2
RECIPE = {**PRESETS["paper"], "thinning": 1.0, "coarse_steps": 0, "save_every": 1000}  # of all rows
RANDOM, COSINE = dict(scorer="random"), dict(scorer="cosine")
SALIENCY = dict(scorer="stts", sim_weight=0.0, scorer_lr_ratio=5.0, saliency_steps=60)  # see saliency.py
SPREAD = dict(SALIENCY, spread=0.3)
METHODS = {  # what a method is called in the tables, and its own settings of the training run
    "unpruned": ("unpruned", {}),
    "stts": ("STTS", {}),
    "random": ("random", RANDOM),
    "saliency": ("STTS trained with saliency, spread (ours)", SPREAD),
    "cosine": ("cosine heuristic, trained", COSINE),
    "no-aux": ("STTS without the auxiliary loss", dict(sim_weight=0.0)),
    "no-bias": ("STTS without the bias (no LM gradient)", dict(bias="none")),
    "oracle": ("oracle: the cells that answers depend on", RANDOM),  # scored by `reproduce.oracle`
    "tome": ("merging (ToMe), trained", RANDOM),  # pruned by its encoder, as all of RIVALS are
    "frames": ("fewer frames, unpruned", {}),
    "blind": ("blind, trained", dict(blind=True)),
    "resolution": ("smaller frames, unpruned (44% of the cells at k = 50, 11% at 80)", {}),
    "saliency-plain": ("STTS trained with saliency, not spread (ours)", SALIENCY),
    "cosine-spread": ("cosine heuristic, trained, spread", dict(COSINE, spread=0.3)),
    "stts-spread": ("STTS, spread (ours)", dict(spread=0.3)),
    "saliency-deeper": ("trained with saliency, spread (ours), scored a block later", dict(SPREAD, score_after=1)),
    "deeper": ("STTS, scored a block later", dict(score_after=1)),
    "saliency-deepest": ("trained with saliency, spread (ours), scored two blocks later", dict(SPREAD, score_after=2)),
    "deepest": ("STTS, scored two blocks later", dict(score_after=2)),  # so the connector reads another block
    "saliency-few": ("trained with saliency, spread (ours), on half of the frames", dict(SPREAD, max_frames=16)),
    "saliency-many": ("trained with saliency, spread (ours), on twice the frames", dict(SPREAD, max_frames=64)),
    "unpruned-range": ("unpruned, trained on any number of frames", dict(max_frames=64, thinning=4.0)),  # 16 to 64
    "saliency-range": (
        "trained with saliency, spread (ours), on any number of frames", dict(SPREAD, max_frames=64, thinning=4.0),
    ),
    "evs": ("EVS: pixels that change", RANDOM),
    "visionzip": ("VisionZip: attention received in the ViT", RANDOM),
    "vidcom2": ("VidCom²: unusual frames and cells", RANDOM),
    "divprune": ("DivPrune: far from each other", RANDOM),
    "contrast": ("contrast within a cell", RANDOM),
    "rlt": ("RLT: runs dropped before the ViT", RANDOM),
    "dycoke": ("merging over time (DyCoke)", RANDOM),
    "fastv": ("FastV: attention of the question, in the LLM", RANDOM),
    "young-unpruned": ("unpruned", {}),  # these start from a base after its first run: there is much to learn yet
    "young-saliency": ("trained with saliency, spread (ours)", SPREAD),
    "young-cosine": ("cosine heuristic", COSINE),
    "young-random": ("random", RANDOM),
    "young-frames": ("fewer frames, unpruned", {}),
}  # fmt: skip
ASKED = (*RIVALS, "cosine", "random")  # these, at inference only, are the rows of the table of rivals


def parted(method: str) -> tuple[str, int | None]:
    """A row's method, and its own number of steps.

    >>> parted("unpruned@100"), parted("stts"), parted("stts@1.py:Mine")
    (('unpruned', 100), ('stts', None), ('stts@1.py:Mine', None))
    """
    name, _, steps = method.rpartition("@")
    return (name, int(steps)) if name in METHODS and steps.isdecimal() and int(steps) else (method, None)


def named(method: str) -> str:
    """What a method is called in the tables. Your own scorer is called by its class.

    >>> named("unpruned@100"), named("my_file.py:MyScorer")
    ('unpruned, 100 steps', 'MyScorer')
    """
    kind, steps = parted(method)
    name = METHODS[kind][0] if kind in METHODS else kind.rpartition(":")[2]
    return f"{name}, {steps} steps" if steps else name


@dataclass(frozen=True)
class Row:
    """One trained model, in the world with so many panels.

    method  a key of METHODS, or a scorer's name. @ and a number of steps may follow, instead of the recipe's.
    k       a rival at k = 0 is not trained: the unpruned row's model is asked with it (`asked`)
    seed    the row starts from base `seed` mod BASES
    """

    method: str
    k: float
    seed: int
    panels: int = MOST_PANELS

    @property
    def name(self) -> str:
        """The result's file name, without its end. Your own scorer is known by its class."""
        fewer = f"-panels{self.panels}" * (self.panels < MOST_PANELS)
        return f"{self.method.rpartition(':')[2]}-k{round(100 * self.k)}-seed{self.seed}{fewer}"

    @property
    def young(self) -> bool:
        """Whether it starts from a base after its first run."""
        return self.method.startswith("young-")

    @property
    def asked(self) -> bool:
        """Whether the method only asks, and the model is the unpruned row's."""
        return self.k == 0 and (self.method in ASKED or self.method in RIVALS)

    def config(self, data: str, init: Path) -> PaperConfig:
        """All settings of the run. Raises ValueError for a method that cannot be trained."""
        if self.asked:
            return dataclasses.replace(self, method="unpruned").config(data, init)
        method, steps = parted(self.method)
        inside = getattr(RIVALS.get(method), "gone_from", "packed") == "llm"
        require(not inside, f"{method} prunes inside the LLM: it is asked, at k = 0, and not trained")
        settings = dict(METHODS[method][1] if method in METHODS else {"scorer": method}, k=self.k)
        if steps:
            settings["steps"] = steps
        if method in ("frames", "young-frames"):  # the budget as fewer frames
            settings |= dict(k=0.0, max_frames=math.ceil(round(FRAMES * (1 - self.k), 6)))
        if method == "resolution":  # the budget as fewer cells in a frame: 4 of 9, or 1
            settings |= dict(k=0.0, image_size=32 if self.k <= 0.6 else 16)
        own = dict(data=data, init=str(init), out=str(Path("runs") / "rows" / self.name), seed=self.seed)
        return PaperConfig(**{**BASE, **RECIPE, **settings, **own, "panels": self.panels})


def grid(methods: str, *ks: float, seeds: tuple[int, ...] = (0,)) -> list[Row]:
    """The rows of these methods, at each k, with each seed.

    >>> [row.name for row in grid("stts random", 0.5, 0.8)]
    ['stts-k50-seed0', 'random-k50-seed0', 'stts-k80-seed0', 'random-k80-seed0']
    """
    return [Row(method, k, seed) for k in ks for method in methods.split() for seed in seeds]


PLAIN = grid("unpruned", 0.0, seeds=SEEDS)
MAIN = "saliency stts random"
TABLES = {  # the rows that a table needs, the most important first
    "k": [*PLAIN, *grid(MAIN, 0.8, 0.5, 0.9, seeds=SEEDS), *grid(MAIN, 0.3, 0.4, 0.6, 0.7)],
    "methods": [
        *PLAIN, *grid(MAIN, 0.8, 0.5, seeds=SEEDS), *grid("cosine", 0.8, 0.5, seeds=SEEDS),
        *grid("stts-spread no-aux no-bias", 0.5, seeds=SEEDS), *grid("stts-spread no-aux no-bias", 0.8),
        *grid("cosine-spread saliency-plain oracle tome frames resolution", 0.8, 0.5),
        *grid("oracle cosine", 0.9), *grid("blind", 0.0),
    ],
    "frames": [  # more of them at test time
        *PLAIN, *grid("saliency stts saliency-few frames", 0.5, seeds=SEEDS), *grid("saliency-many", 0.9),
        *grid("unpruned-range", 0.0, seeds=SEEDS), *grid("saliency-range", 0.5, seeds=SEEDS),
    ],
    "depth": [  # the paper's Figure 6. "deepest" unpruned is what its other connector alone does
        *grid("unpruned deepest", 0.0), *grid("stts deeper", 0.5, seeds=SEEDS),
        *grid("saliency deepest saliency-deeper saliency-deepest", 0.5),
    ],
    "clock": [  # shorter and longer runs, beside the time that they take
        *grid("unpruned unpruned@100 unpruned@200", 0.0), *grid("saliency cosine", 0.8, 0.9),
        *grid("saliency@800", 0.8, seeds=SEEDS), *grid("cosine@800 saliency@200", 0.8), *grid("saliency@800", 0.9),
        *grid("stts stts@800", 0.5, seeds=SEEDS), *grid("unpruned@800", 0.0, seeds=SEEDS),
        *grid("saliency-many", 0.9), *grid("saliency-many@800", 0.9, seeds=(0, 1)),
        *grid("young-unpruned", 0.0, seeds=SEEDS), *grid("young-saliency@500", 0.5, seeds=SEEDS),  # the same time each
        *grid("young-cosine@600 young-random@600 young-frames@750", 0.5), *grid("young-saliency@800", 0.8),
        *grid("young-unpruned@500", 0.0),  # but this one has as many steps as a pruned one
    ],
    "rivals": grid(" ".join(ASKED), 0.0),
    "rivals-trained": grid("evs vidcom2 divprune contrast rlt dycoke", 0.8, 0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """A way to ask a trained model: at this k, of this many frames of this size, the cells chosen by this method."""

    k: float
    method: str
    max_frames: int
    size: int = SIZE

    @property
    def judged(self) -> bool:
        """Whether it is known which evidence is kept: cells are not merged, and all frames are there, whole."""
        merges = getattr(RIVALS.get(parted(self.method)[0]), "merges", False)
        return not merges and (self.max_frames, self.size) == (FRAMES, SIZE)


def askings(row: Row) -> dict[str, Asking]:
    """How a row's model is asked at test time: as trained, with other numbers of frames, an unpruned one in many ways.
    Shorter and longer runs are asked as trained alone: they are there for one comparison."""
    if row.asked:
        return {f"inference only, k = {k}": Asking(k, row.method, FRAMES) for k in (0.5, 0.8)}
    config = row.config("", Path())
    trained = Asking(config.k, row.method, config.max_frames, config.image_size)
    at = lambda frames: dataclasses.replace(trained, max_frames=frames)
    ways = {"as trained": trained}
    if row.method == "unpruned":
        if row.panels == MOST_PANELS:
            ways |= {f"{n} frames": at(n) for n in (1, 8, 16, 64)}
        for k, name in itertools.product((0.5, 0.8), ("cosine", "random", "tome")):
            ways[f"{name}, inference only, k = {k}"] = Asking(k, name, FRAMES)
    elif row.method in ("stts", "saliency", "saliency-few") and row.k <= 0.5:
        ways["scaled"] = at(scaled_frames(config.max_frames, row.k))
    elif row.method == "saliency" and row.k >= 0.8:  # twice the frames are still few tokens
        ways["scaled"] = at(2 * FRAMES)
    elif row.method.endswith("-range"):
        ways |= {"half the frames": at(FRAMES // 2), "other rows' frames": at(FRAMES)}
    return ways
