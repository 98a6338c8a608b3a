"""What a rival saves: the time of an inference pass beside the unpruned model's, and the counted limit.

The two models take turns. On a CPU, time is processor time, summed over threads.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

import torch

from stts_mini.data.progress import in_turns
from stts_mini.lab.paper.rivals import fastv
from stts_mini.lab.speed.flops import Text, evenly_kept, multiply_adds, needed
from stts_mini.model import VLM, Encoder, VLMConfig
from stts_mini.sequence import Batch


def cost(config: VLMConfig, kept: Sequence[Sequence[int]], text: Text, gone_from: str = "packed") -> int:
    """Multiply-adds of an inference pass that keeps so many cells of each frame of each video, with tokens gone from
    this stage on (see `protocol.Rival`). What is computed to choose them does not count."""
    config = dataclasses.replace(config, scored_by="random")
    full = [[config.cells] * len(video) for video in kept]
    whole, pruned = (multiply_adds(config, needed(config, cells, 0.0, text)) for cells in (full, kept))
    if gone_from in ("connected", "llm"):
        depth, untouched = config.llm.depth, fastv.K if gone_from == "llm" else 0
        return sum(whole.values()) - (whole["llm"] - pruned["llm"]) * (depth - untouched) // depth
    if gone_from == "stem":
        vit, patches = config.vit, sum(map(len, kept)) * config.vit.num_patches  # all are embedded
        pruned["stem"] = pruned["packed"] * (config.score_after + 2) // config.num_packed
        pruned["stem"] += 3 * vit.patch_size**2 * vit.width * patches
    return sum(pruned.values())


@torch.no_grad()
def timed(model: VLM, asked: VLM, encode: Encoder | None, k: float, batches: Sequence[Batch], rounds: int = 7) -> dict:
    """How many times as fast `asked`, with this encoder at k, answers these questions as the model does unpruned.

    batches    of one question each
    → speedup  the median over rounds, from frames to the first token
      limit    the ratio of the counted multiply-adds
      seconds  of a pass, unpruned and pruned
    """
    run = lambda side: [side[0].generate(batch, side[1], 1, side[2]) for batch in batches]
    sides = ((model, 0.0, None), (asked, k, encode))
    on_cpu = next(model.parameters()).is_cpu  # there, processor time: others may be at work beside this
    seconds = in_turns(run, sides, rounds, time.process_time if on_cpu else time.perf_counter, sides)
    whole, pruned = (seconds[side] for side in sides)
    C, counts, stage = model.config.cells, [0, 0], getattr(encode or asked, "gone_from", "packed")
    for batch in batches:
        T, text = int(batch.num_frames[0]), [[(len(batch.branches[0][0][0]), 0)]]
        kept = evenly_kept(k, C, T)  # inside the LLM only the sum counts
        if stage != "llm":
            encoded = asked.encode(batch, k, encode)
            kept = encoded.kept[0][encoded.shown[0]].tolist()
        counts[0] += cost(model.config, [[C] * T], text)
        counts[1] += cost(model.config, [kept], text, stage)
    speedup = statistics.median(a / b for a, b in zip(whole, pruned, strict=True))
    times = (round(statistics.median(of) / len(batches), 5) for of in (whole, pruned))
    return dict(speedup=round(speedup, 3), limit=round(counts[0] / counts[1], 3), seconds=list(times))
