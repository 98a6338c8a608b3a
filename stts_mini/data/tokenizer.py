"""Text to token ids and back: whole words of a small world, time stamps, and bytes for the rest.

Every text round-trips. A word and the space before it are one token. So a text gets one space in front, and decoding
takes it off again. A time stamp with one decimal is a word like any other, from 0.0 to 128.0 s. Later ones are spelt in
six bytes, which may outweigh the kept cells of their frame. Special tokens can never be written as text.

    ids 0..7: special · then 256 bytes · then stamps · then words

`PretrainedTokenizer` gives a real LLM's own tokenizer the same methods. `Marks` names the few ids that the model
itself must know.

What this file does not do: learn merges.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stts_mini.data.files import utf8
from stts_mini.sequence import MARKS, Marks

SPECIAL = ("<pad>", "<end>", "<frame>", "</frame>", "<question>", "<option>", "<answer>", "<reserved>")
END, FRAME_START, FRAME_END = MARKS.end, MARKS.frame_start, MARKS.frame_end
QUESTION, OPTION, ANSWER = 4, 5, 6
FIRST_BYTE = len(SPECIAL)
LAST_STAMP = 128  # seconds
CHUNKS = re.compile(r" \d+\.\d(?!\w)| \w+| [^\w\s]|.", re.DOTALL)


class Tokenizer:
    """
    >>> tokenizer = Tokenizer(["red", "circle"])
    >>> len(tokenizer.encode("red circle at 12.5 s")), tokenizer.encode("12.5") == [tokenizer.stamp(12.5)]
    (8, True)
    >>> tokenizer.decode(tokenizer.encode("red zébra, 99:99"))
    'red zébra, 99:99'
    """

    def __init__(self, words: list[str]):
        self.first_stamp = FIRST_BYTE + 256
        stamps = [f"{i / 10:.1f}" for i in range(10 * LAST_STAMP + 1)]
        chunks = [" " + word for word in (*stamps, *words)]
        self.num_stamps, self.marks = len(stamps), MARKS
        self.id_of = {chunk: self.first_stamp + i for i, chunk in enumerate(chunks)}
        self.bytes_of = [*map(str.encode, SPECIAL), *(bytes([i]) for i in range(256)), *map(str.encode, self.id_of)]

    def __len__(self) -> int:
        """V, the size of the vocabulary."""
        return len(self.bytes_of)

    def stamp(self, time: float) -> int:
        """The id of a time in seconds, rounded to one decimal. Raises KeyError beyond `LAST_STAMP`."""
        return self.id_of[f" {time:.1f}"]

    def prompt(self, question: str, options: Sequence[str] = ()) -> list[int]:
        """The ids of <question> … <option> … <option> … <answer>."""
        shown = (i for option in options for i in (OPTION, *self.encode(option)))
        return [QUESTION, *self.encode(question), *shown, ANSWER]

    def encode(self, text: str) -> list[int]:
        """Text to ids. Raises ValueError for half a character (a lone surrogate)."""
        ids: list[int] = []
        for chunk in CHUNKS.findall(" " + utf8(text)):
            ids += [self.id_of[chunk]] if chunk in self.id_of else [FIRST_BYTE + byte for byte in chunk.encode()]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Ids to text. Special tokens appear by name. Bytes that are not UTF-8 become �."""
        return b"".join(self.bytes_of[i] for i in ids).decode(errors="replace").removeprefix(" ")


class PretrainedTokenizer:
    """A real LLM's tokenizer, from the text of its `tokenizer.json`, with the methods of `Tokenizer`. Needs the
    package tokenizers. `marks` names, as text, the special tokens that `Marks` holds as ids (None: Qwen3's).
    Raises ValueError for a vocabulary without them."""

    def __init__(self, json_text: str, marks: dict[str, str] | None = None):
        try:
            from tokenizers import Tokenizer as FastTokenizer
        except ImportError as error:
            raise ValueError("this model has a tokenizer of its own: pip install tokenizers to use it") from error
        marks = marks or dict(
            pad="<|endoftext|>", end="<|im_end|>", frame_start="<|vision_start|>", frame_end="<|vision_end|>"
        )  # fmt: skip
        self.json_text, self.names = json_text, marks
        self.fast = FastTokenizer.from_str(json_text)
        self.fast.no_truncation()  # A file may ask for both. Hugging Face does neither unless a call asks for it.
        self.fast.no_padding()
        self.fast.encode_special_tokens = True  # the name of a special token in a text is plain text
        ids = {name: self.fast.token_to_id(text) for name, text in marks.items()}
        if missing := [marks[name] for name, i in ids.items() if i is None]:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: say which of its tokens to use as marks")
        self.marks = Marks(**ids)

    def __len__(self) -> int:
        """V, the size of the vocabulary."""
        return self.fast.get_vocab_size()

    def prompt(self, question: str, options: Sequence[str] = ()) -> list[int]:
        """The ids of the question, the options and "Answer:". Raises ValueError as `encode` does."""
        lines = ["Question: " + question, *(f"Option: {option}" for option in options), "Answer:"]
        return self.fast.encode(utf8("\n".join(lines)), add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """Text to ids, with the space before it. Raises ValueError for half a character (a lone surrogate)."""
        return self.fast.encode(" " + utf8(text), add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Ids to text, without the space before it. Special tokens appear by name."""
        return self.fast.decode(ids, skip_special_tokens=False).removeprefix(" ")
