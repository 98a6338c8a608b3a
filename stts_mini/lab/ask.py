"""Ask a trained model about a video, and see what each step took.

    python -m stts_mini.lab.ask clip.mp4 "what colour is the circle ?" --options red green blue
    python -m stts_mini.lab.ask clip.mp4                 a prompt, for one question after another

The video is decoded, encoded and read by the LLM once: its keys and values serve every question after. The answer
is decoded greedily, token by token as it comes; with options, each one's log-likelihood stands below, the best
first.

What this file does not do: know how the model works (`model.py`, whose parts it calls one by one, to time them).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from stts_mini.data.batches import AnyTokenizer, Reader, collate, tokenizer_of
from stts_mini.data.clips import OWN, Clip
from stts_mini.eval import parse_k
from stts_mini.llm import KVCache
from stts_mini.model import VLM, Encoded
from stts_mini.scorer import find_scorer
from stts_mini.sequence import Layout, prefix_ids
from stts_mini.train import pick_device
from stts_mini.training import checkpoint


@dataclass
class Seconds:
    """Wall time of each stage, by name, in the order in which they ran."""

    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add what runs inside to a stage."""
        began = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - began

    def __str__(self) -> str:
        return " · ".join(f"{stage} {1000 * s:.0f} ms" for stage, s in self.spent.items())


class Conversation:
    """One video, and as many questions about it as you like.

    encoded  what the encoder kept of it
    length   of the prefix: the LLM tokens of cells, stamps and markers
    cache    their keys and values, computed once
    """

    def __init__(self, model: VLM, tokenizer: AnyTokenizer, clip: Clip, reader: Reader, k: float):
        self.model, self.tokenizer, self.seconds = model, tokenizer, Seconds()
        with self.seconds.of("read"):
            self.video = reader(clip)
        batch = collate([self.video], [[]], tokenizer=tokenizer).to(self.device)
        with torch.no_grad(), self.seconds.of("encode"):
            self.encoded: Encoded = model.encode(batch, k)
        prefix = prefix_ids(batch.stamps, self.encoded.kept, self.encoded.shown, model.config.marks)
        self.length, self.cache = len(prefix[0]), KVCache()
        layout = Layout.build(prefix, [[]], self.device, model.config.marks)
        with torch.no_grad(), self.seconds.of("prefill"):
            model.llm(model.fill_cells(layout.ids, self.encoded.tokens), layout.positions, layout.mask, self.cache)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def hidden(self, ids: list[int], cache: KVCache, read: int) -> torch.Tensor:
        """The LLM's hidden states (1, len(ids), W) of the next tokens, after `read` others that the cache holds."""
        L, llm = len(ids), self.model.llm
        positions = torch.arange(read, read + L, device=self.device)[None]  # (1, L)
        mask = torch.ones(1, 1, L, read + L, dtype=torch.bool, device=self.device).tril(read)
        return llm(llm.embed(torch.tensor([ids], device=self.device)), positions, mask, cache)

    def branch(self) -> KVCache:
        """A copy of the cache, for one question: the prefix itself stays as it is."""
        first = torch.zeros(1, dtype=torch.long, device=self.device)
        return self.cache.rows(first, torch.arange(self.length, device=self.device)[None])

    def answer(self, question: str, options: Sequence[str] = (), max_new_tokens: int = 32) -> Iterator[str]:
        """The answer, piece by piece, as it is decoded."""
        with self.seconds.of("question"):
            cache = self.branch()
            ids, read, said, printed = self.tokenizer.prompt(question, options), self.length, [], ""
            hidden = self.hidden(ids, cache, read)
        for _ in range(max_new_tokens):
            with self.seconds.of("decode"):
                token = int(self.model.llm.logits(hidden[0, -1]).argmax())
                read, ids = read + len(ids), [token]
                if token == self.model.config.marks.end:
                    return
                said.append(token)
                hidden = self.hidden(ids, cache, read)
            text = self.tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # half of a character: wait for the rest of it
                yield text[len(printed) :]
                printed = text

    @torch.no_grad()
    def likelihoods(self, question: str, options: Sequence[str]) -> list[tuple[str, float]]:
        """Each option's log-likelihood, summed over its tokens, its end left out; the best first."""
        prompt, scores = self.tokenizer.prompt(question, options), []
        with self.seconds.of("options"):
            for option in options:
                ids = self.tokenizer.encode(option)
                hidden = self.hidden([*prompt, *ids], self.branch(), self.length)
                log_p = self.model.llm.logits(hidden[0, len(prompt) - 1 : -1]).float().log_softmax(-1)
                scores.append(float(log_p[range(len(ids)), ids].sum()))
        return sorted(zip(options, scores, strict=True), key=lambda pair: -pair[1])

    def summary(self) -> str:
        """How many tokens there were, and how many are left."""
        cells, kept = self.encoded.shown.sum().item() * self.model.config.cells, int(self.encoded.kept.sum())
        rows = "" if self.encoded.packed is None else f" (packed rows: {len(self.encoded.packed.frame)})"
        frames = len(self.video.frames)
        return f"{frames} frames, {kept} of {cells} cells kept{rows}, {self.length} tokens before a question"


def ask(talk: Conversation, question: str, options: Sequence[str]) -> None:
    """Print the answer as it comes, the options' likelihoods, and the time of each stage."""
    for piece in talk.answer(question, options):
        print(piece, end="", flush=True)
    print()
    for option, score in talk.likelihoods(question, options) if options else ():
        print(f"  {option:20} {score:8.2f}")
    print(f"  {talk.seconds}")
    talk.seconds = Seconds()


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m stts_mini.lab.ask", description=__doc__.split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("video", type=Path, help="a video, or a picture")
    parser.add_argument("question", nargs="?", help="none: a prompt, until an empty line or Ctrl-D")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="further pictures, beside the first")
    parser.add_argument("--options", nargs="+", default=[], metavar="TEXT", help="answers to choose from")
    parser.add_argument("--checkpoint", default="runs/cpu/checkpoint.pt", help="what `python -m stts_mini.train` made")
    parser.add_argument("--k", type=parse_k, default=None, help="share of cells to remove; as in training if not given")
    parser.add_argument("--frames", type=int, default=None, help="frames to look at; as in training if not given")
    parser.add_argument("--scorer", default=None, help="another scorer than in training, or my_file.py:MyScorer")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    except (KeyboardInterrupt, EOFError):
        print()


def run(args: argparse.Namespace) -> None:
    """What the command line says."""
    other = find_scorer(args.scorer) if args.scorer else None  # before the checkpoint, which may name it
    model, state = checkpoint.load_model(args.checkpoint, pick_device("auto"))
    checkpoint.check_world(state, args.checkpoint)
    train = state["train_config"]
    if train["blind"]:
        raise ValueError(f"{args.checkpoint} was trained blind: it has learned nothing of videos")
    if args.frames is not None and args.frames < 1:
        raise ValueError(f"--frames {args.frames}: give at least 1")
    if other and args.scorer != model.config.scored_by:
        model.scorer = other(model.config.scorer).to(next(model.parameters()).device)
    frames, k = args.frames or train["max_frames"], train["k"] if args.k is None else args.k
    reader = Reader(frames, model.config.vit.image_size, train["fps"])
    images = (args.video, *args.pictures) if args.pictures else ()
    clip = Clip(args.video, OWN, OWN, 0, (), images=images)
    talk = Conversation(model, tokenizer_of(state), clip, reader, k)
    print(f"{talk.summary()} (k = {k})")
    if args.question:
        return ask(talk, args.question, args.options)
    while question := input("? ").strip():
        ask(talk, question, args.options)


if __name__ == "__main__":
    main()
