"""Our backbones beside Hugging Face's, with the same weights, in the same process: is readable code slow?

    pip install -e '.[backbones]'
    python -m stts_mini.lab.speed.backbones                  SiglipVisionModel and Qwen3ForCausalLM, two sizes each

Both compute in float32 with PyTorch's fused attention ("sdpa") and take turns in every round. Before timing, we check
that their outputs are the same. A ratio above 1 means that ours is faster. It is seconds(theirs) / seconds(ours) of a
round, given as median and quartiles over the rounds.

What this file does not do: look at pruning (`bench.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from stts_mini.data.files import require
from stts_mini.data.progress import in_turns
from stts_mini.lab.speed.machine import MACHINE, machine
from stts_mini.llm import LLM, LLMConfig, from_qwen3
from stts_mini.report.markdown import markdown
from stts_mini.training.logging import one_line_errors, parser_of
from stts_mini.vit import ViT, ViTConfig, from_siglip

Forward = Callable[[], Tensor]  # a model and its input
VITS = {  # the shape, and frames in a pass
    "ViT, the toy's": (ViTConfig(48, 8, 64, 6, 2, 256), 128),
    "ViT, of width 384": (ViTConfig(112, 14, 384, 6, 6, 1536), 16),
}
LLMS = {  # the shape, sequences, tokens of a sequence
    "LLM, the toy's": (LLMConfig(1024, 128, 4, 4, 2, 32, 256), 8, 256),
    "LLM, of width 512": (LLMConfig(4096, 512, 4, 8, 4, 64, 1536), 2, 384),
}


def vit_pair(config: ViTConfig, frames: int) -> dict[str, Forward]:
    """Ours and theirs, with the same weights."""
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
    return dict(ours=lambda: ours(pixels), theirs=lambda: theirs(pixel_values=pixels).last_hidden_state)


def llm_pair(config: LLMConfig, sequences: int, tokens: int) -> dict[str, Forward]:
    """Ours and theirs, with the same weights, on causal text, with logits of all tokens."""
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
    own = lambda: ours.logits(ours(ours.embed(ids), positions, mask))
    return dict(ours=own, theirs=lambda: theirs(input_ids=ids).logits)


def check(name: str, pair: dict[str, Forward]) -> None:
    """Raise RuntimeError if the two outputs differ."""
    with torch.no_grad():
        a, b = pair["ours"](), pair["theirs"]()
    if not torch.allclose(a, b, rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"{name}: the two outputs differ by {float((a - b).abs().max()):.2g}")


def trains(run: Forward) -> None:
    """Forward and backward."""
    run().square().mean().backward()


def ratio(pair: dict[str, Forward], what: Callable[[Forward], object], rounds: int) -> str:
    """seconds(theirs) / seconds(ours): the median over rounds, and its quartiles."""
    run = lambda side: what(pair[side])
    seconds = in_turns(run, ("theirs", "ours"), rounds, time.perf_counter, warm=("theirs", "ours") * 2)
    low, middle, high = np.percentile(np.divide(seconds["theirs"], seconds["ours"]), (25, 50, 75))
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.speed.backbones", __doc__)
    parser.add_argument("--rounds", type=int, default=30, help="times that each takes its turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    least = min(args.rounds, args.threads)
    require(least > 0, "--rounds {}, --threads {}: give at least 1", args.rounds, args.threads)
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    head = f"transformers {transformers.__version__}, {args.rounds} rounds, " + MACHINE
    print(head.format(**machine(torch.device("cpu"))), end="\n\n", flush=True)
    pairs = {name: vit_pair(*sizes) for name, sizes in VITS.items()}
    pairs |= {name: llm_pair(*sizes) for name, sizes in LLMS.items()}
    rows = []
    for name, pair in pairs.items():
        check(name, pair)
        forward = ratio(pair, torch.no_grad()(lambda run: run()), args.rounds)
        rows.append([name, forward, ratio(pair, trains, args.rounds)])
    print(markdown(["theirs / ours, median (quartiles)", "forward", "forward and backward"], rows))


if __name__ == "__main__":
    main()
