"""Ask a trained model about a video, and see what each step took.

    python -m stts_mini.lab.ask clip.mp4 "what colour is the circle ?" --options red green blue
    python -m stts_mini.lab.ask clip.mp4                 a prompt, for one question after another

The video is decoded, encoded and read by the LLM once. Its keys and values then serve every question. The answer is
decoded greedily, and each token is printed as it comes. With options, the log-likelihood of each is printed below, the
best first.

What this file does not do: know how the model works (`model.py`, whose parts it calls one by one, to time them).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from stts_mini.data.batches import AnyTokenizer, Reader, collate
from stts_mini.data.clips import OWN, Clip, normalised
from stts_mini.data.files import printable, require
from stts_mini.eval import parse_k
from stts_mini.llm import KVCache
from stts_mini.model import VLM
from stts_mini.report.result import broken_clips
from stts_mini.sequence import Layout, prefix_ids
from stts_mini.train import pick_device
from stts_mini.training import checkpoint
from stts_mini.training.logging import one_line_errors, parser_of
from stts_mini.training.step import now


class Conversation:
    """One video, and as many questions about it as you like.

    encoded  what the encoder kept of the video
    length   how many LLM tokens the prefix has: cells, stamps and markers
    cache    the prefix's keys and values, computed once
    seconds  wall time of each stage, by name, in the order in which they ran
    """

    @torch.no_grad()
    def __init__(self, model: VLM, tokenizer: AnyTokenizer, clip: Clip, reader: Reader, k: float):
        self.model, self.tokenizer, self.cache = model, tokenizer, KVCache()
        self.device, self.seconds = next(model.parameters()).device, {}
        with self.timed("read"):
            self.video = reader(clip)
        batch = collate([self.video], [[]], tokenizer=tokenizer).to(self.device)
        with self.timed("encode"):
            self.encoded = model.encode(batch, k)
        prefix = prefix_ids(batch.stamps, self.encoded.kept, self.encoded.shown, model.config.marks)
        layout = Layout.build(prefix, [[]], self.device, model.config.marks)
        self.length = layout.tokens
        with self.timed("prefill"):
            model.llm(model.fill_cells(layout.ids, self.encoded.tokens), layout.positions, layout.mask, self.cache)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        began = now(self.device)
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now(self.device) - began

    @torch.no_grad()
    def hidden(self, ids: list[int], cache: KVCache) -> torch.Tensor:
        """The LLM's hidden states (1, len(ids), W) of the next tokens, which come after those in the cache."""
        L, read, llm = len(ids), cache.lengths[0], self.model.llm
        positions = torch.arange(read, read + L, device=self.device)[None]  # (1, L)
        mask = torch.ones(1, 1, L, read + L, dtype=torch.bool, device=self.device).tril(read)
        return llm(llm.embed(torch.tensor([ids], device=self.device)), positions, mask, cache)

    def answer(self, question: str, options: Sequence[str] = (), max_new_tokens: int = 32) -> Iterator[str]:
        """The answer, piece by piece, while it is decoded. It ends with "…" if it is cut, as in an evaluation."""
        said, text, printed = [], "", ""
        with self.timed("question"):
            cache = copy.deepcopy(self.cache)  # for this question, so that the prefix does not change
            hidden = self.hidden(self.tokenizer.prompt(question, options), cache)
        for _ in range(max_new_tokens):
            with self.timed("decode"):
                token = int(self.model.llm.logits(hidden[0, -1]).argmax())
                if token == self.model.config.marks.end:
                    break
                said.append(token)
                hidden = self.hidden([token], cache)
            text = self.tokenizer.decode(said)
            if not text.endswith("\ufffd"):  # half of a character: wait for the rest
                yield text[len(printed) :]
                printed = text
        else:
            text += "…"
        if text != printed:  # half of a character whose rest did not come, or the sign that more would come
            yield text[len(printed) :]

    @torch.no_grad()
    def likelihoods(self, question: str, options: Sequence[str]) -> list[tuple[str, float]]:
        """Each option's log-likelihood, summed over its tokens and the end token. The best comes first."""
        prompt, scores = self.tokenizer.prompt(question, options), []
        with self.timed("options"):
            for option in options:
                ids = self.tokenizer.encode(option)
                hidden = self.hidden([*prompt, *ids], copy.deepcopy(self.cache))
                log_p = self.model.llm.logits(hidden[0, len(prompt) - 1 :]).float().log_softmax(-1)
                scores.append(float(log_p[range(len(ids) + 1), [*ids, self.model.config.marks.end]].sum()))
        return sorted(zip(options, scores, strict=True), key=lambda pair: -pair[1])

    def summary(self) -> str:
        """How many tokens there were, and how many are left."""
        kept, rows = int(self.encoded.kept.sum()), len(self.encoded.packed.frame)
        cells = f"{kept} of {self.encoded.keep.numel()} cells kept (packed rows: {rows})"
        return f"{len(self.video.frames)} frames, {cells}, {self.length} tokens before a question"


def ask(talk: Conversation, question: str, options: Sequence[str]) -> None:
    """Print the answer as it comes, the options' likelihoods, and the time of each stage."""
    for piece in talk.answer(question, options):
        print(printable(piece), end="", flush=True)
    print()
    for option, score in talk.likelihoods(question, options) if options else ():
        print(f"  {printable(option):20} {score:8.2f}")
    print("  " + " · ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in talk.seconds.items()))
    talk.seconds.clear()


def main(argv: Sequence[str] | None = None) -> None:
    """The command: see the module's docstring."""
    parser = parser_of("lab.ask", __doc__)
    parser.add_argument("video", type=Path, help="a video, or a picture")
    parser.add_argument("question", nargs="?", help="if none: a prompt, until an empty line or Ctrl-D")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="more pictures, besides the first")
    parser.add_argument("--options", nargs="+", default=[], metavar="TEXT", help="answers to choose from")
    parser.add_argument("--checkpoint", default="runs/cpu/checkpoint.pt", help="what `python -m stts_mini.train` made")
    parser.add_argument("--k", type=parse_k, help="share of cells to remove (as in training if not given)")
    parser.add_argument("--frames", type=int, help="frames to look at (as in training if not given)")
    parser.add_argument("--scorer", help="a scorer instead of the trained one, such as my_file.py:MyScorer")
    args = parser.parse_args(argv)
    with one_line_errors(parser.prog):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    require(args.question is None or args.question.strip(), "the question is empty: give one, or none for a prompt")
    options = {normalised(option) for option in args.options} - {""}
    require(len(options) == len(args.options), "--options {}: give each text once, and none empty", args.options)
    require(args.frames is None or args.frames > 0, f"--frames {args.frames}: give 1 or more")
    model, state, tokenizer = checkpoint.load_trained(args.checkpoint, pick_device("auto"), args.scorer)
    train = state["train_config"]
    require(not train.get("blind"), f"{args.checkpoint} was trained blind: it has learned nothing of videos")
    frames = train["max_frames"] if args.frames is None else args.frames
    k = train["k"] if args.k is None else args.k
    reader = Reader(frames, model.config.vit.image_size, train["fps"])
    images = (args.video, *args.pictures) if args.pictures else ()
    talk = Conversation(model, tokenizer, Clip(args.video, OWN, OWN, 0, (), images=images), reader, k)
    print(f"{talk.summary()} (k = {k})")
    print(broken_clips({}, reader.skipped), end="")
    if args.question is not None:
        return ask(talk, args.question, args.options)
    with suppress(EOFError, KeyboardInterrupt):
        while question := input("? ").strip():
            try:
                ask(talk, question, args.options)
            except ValueError as error:  # half a character, for example: the next question may be better
                print(printable(f"  {error}"))
    print()


if __name__ == "__main__":
    main()
