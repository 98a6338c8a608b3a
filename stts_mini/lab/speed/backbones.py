"""Our backbones beside Hugging Face's, with the same weights, in the same process: is being readable slow?

    pip install -e '.[backbones]'
    python -m stts_mini.lab.speed.backbones                  SiglipVisionModel and Qwen3ForCausalLM, two sizes each

Both compute in float32 with PyTorch's fused attention ("sdpa"), take turns in every round, and give the same output
(checked before anything is timed). A ratio above 1 means that ours is faster; given is the median over rounds of
seconds(theirs) / seconds(ours) within a round, and its quartiles.

What this file does not do: look at pruning (`bench.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stts_mini.lab.paper.reproduce import commit
from stts_mini.lab.speed.bench import device_name, load_average
from stts_mini.llm import LLM, LLMConfig, from_qwen3
from stts_mini.vit import ViT, ViTConfig, from_siglip

VITS = {  # the shape, and frames in a pass
    "ViT, the toy's": (ViTConfig(48, 8, 64, 6, 2, 256), 128),
    "ViT, of width 384": (ViTConfig(112, 14, 384, 6, 6, 1536), 16),
}
LLMS = {  # the shape, sequences, tokens of each
    "LLM, the toy's": (LLMConfig(1024, 128, 4, 4, 2, 32, 256), 8, 256),
    "LLM, of width 512": (LLMConfig(4096, 512, 4, 8, 4, 64, 1536), 2, 384),
}


@dataclass
class Pair:
    """Two models that give the same, as functions of nothing."""

    name: str
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]

    def check(self) -> None:
        """Raises RuntimeError if they differ."""
        with torch.no_grad():
            a, b = self.ours(), self.theirs()
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"{self.name}: the two outputs differ by {float((a - b).abs().max()):.2g}")


def vit_pair(name: str, config: ViTConfig, frames: int) -> Pair:
    """The same weights in both."""
    import transformers

    theirs = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            image_size=config.image_size, patch_size=config.patch_size, hidden_size=config.width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, intermediate_size=config.mlp,
            vision_use_head=False, attn_implementation="sdpa",
        )
    )  # fmt: skip
    ours = ViT(config)
    ours.load_state_dict(from_siglip(theirs.state_dict()))
    pixels = torch.rand(frames, 3, config.image_size, config.image_size) * 2 - 1
    return Pair(name, lambda: ours(pixels), lambda: theirs(pixel_values=pixels).last_hidden_state)


def llm_pair(name: str, config: LLMConfig, sequences: int, tokens: int) -> Pair:
    """The same weights in both; causal text, and the logits of all of it."""
    import transformers

    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=config.vocab_size, hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, head_dim=config.head_dim,
            intermediate_size=config.mlp, tie_word_embeddings=True, rms_norm_eps=config.eps, use_cache=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, attn_implementation="sdpa",
        )
    )  # fmt: skip
    ours = LLM(config)
    ours.load_state_dict(from_qwen3(theirs.state_dict(), tied=True))
    ids = torch.randint(config.vocab_size, (sequences, tokens))
    positions = torch.arange(tokens).expand(sequences, -1)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(sequences, 1, -1, -1)
    return Pair(
        name, lambda: ours.logits(ours(ours.embed(ids), positions, mask)), lambda: theirs(input_ids=ids).logits
    )  # fmt: skip


def forwards(run: Callable[[], Tensor]) -> None:
    """A pass without gradients."""
    with torch.no_grad():
        run()


def trains(run: Callable[[], Tensor]) -> None:
    """Forward and backward."""
    run().square().mean().backward()


def ratios(pair: Pair, what: Callable, rounds: int) -> np.ndarray:
    """seconds(theirs) / seconds(ours) in each round, but for the first two; who begins changes every round."""
    found = []
    for i in range(rounds + 2):
        seconds = {}
        for side in ("ours", "theirs")[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            what(getattr(pair, side))
            seconds[side] = time.perf_counter() - began
        found.append(seconds["theirs"] / seconds["ours"])
    return np.array(found[2:])


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.speed.backbones", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=30, help="times that each takes its turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = parser.parse_args(argv)
    try:
        import transformers
    except ImportError:
        sys.exit(f"{parser.prog}: error: transformers is not installed: pip install -e '.[backbones]'")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(
        f"transformers {transformers.__version__}, torch {torch.__version__}, {device_name(torch.device('cpu'))},"
        f" {args.threads} threads, {args.rounds} rounds, commit {commit()}, load {load_average()} at the start"
    )
    print(f"{'theirs / ours, median (quartiles)':36}{'forward':>22}{'forward and backward':>24}")
    pairs = [*((vit_pair, name, *rest) for name, rest in VITS.items())]
    pairs += [*((llm_pair, name, *rest) for name, rest in LLMS.items())]
    for make, *given in pairs:
        pair = make(*given)
        pair.check()
        cells = []
        for what in (forwards, trains):
            low, middle, high = np.percentile(ratios(pair, what, args.rounds), (25, 50, 75))
            cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
        print(f"{pair.name:36}{cells[0]:>22}{cells[1]:>24}", flush=True)


if __name__ == "__main__":
    main()
