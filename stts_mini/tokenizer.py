"""Text to token ids and back: whole words of a small world, time stamps, and bytes for the rest.

Every text round-trips. A word is one token together with the space before it (so a text gets one space
in front, and decoding takes it off again); a time stamp with one decimal is a word like any other,
from 0.0 to `last_stamp`. Special tokens can never be written as text.

    ids 0..7: special · then 256 bytes · then stamps · then words

What this file does not do: learn merges. For a real LLM, use that LLM's own tokenizer.
"""

from __future__ import annotations

import re

SPECIAL = ("<pad>", "<end>", "<frame>", "</frame>", "<question>", "<option>", "<answer>", "<reserved>")
PAD, END, FRAME_START, FRAME_END, QUESTION, OPTION, ANSWER = range(7)
FIRST_BYTE = len(SPECIAL)
CHUNKS = re.compile(r" \d+\.\d(?!\w)| \w+| [^\w\s]|.", re.DOTALL)


class Tokenizer:
    """
    >>> tokenizer = Tokenizer(["red", "circle"])
    >>> len(tokenizer.encode("red circle at 12.5 s")), tokenizer.encode("12.5") == [tokenizer.stamp(12.5)]
    (8, True)
    >>> tokenizer.decode(tokenizer.encode("red zébra, 99:99"))
    'red zébra, 99:99'
    """

    def __init__(self, words: list[str], last_stamp: float = 128.0):
        self.first_stamp = FIRST_BYTE + 256
        stamps = [f"{i / 10:.1f}" for i in range(round(last_stamp * 10) + 1)]
        chunks = [" " + word for word in (*stamps, *words)]
        self.num_stamps = len(stamps)
        self.id_of = {chunk: self.first_stamp + i for i, chunk in enumerate(chunks)}
        self.chunk_of = {i: chunk for chunk, i in self.id_of.items()}

    def __len__(self) -> int:
        """V, the size of the vocabulary."""
        return self.first_stamp + len(self.id_of)

    def stamp(self, time: float) -> int:
        """The id of a time in seconds, rounded to one decimal; KeyError beyond `last_stamp`."""
        return self.id_of[f" {time:.1f}"]

    def encode(self, text: str) -> list[int]:
        """Text to ids."""
        ids: list[int] = []
        for chunk in CHUNKS.findall(" " + text):
            if chunk in self.id_of:
                ids.append(self.id_of[chunk])
            else:
                ids.extend(FIRST_BYTE + byte for byte in chunk.encode())
        return ids

    def decode(self, ids: list[int]) -> str:
        """Ids to text. Special tokens appear by name; bytes that are no UTF-8 as �."""
        raw = b""
        for i in ids:
            if i < FIRST_BYTE:
                raw += SPECIAL[i].encode()
            elif i < self.first_stamp:
                raw += bytes([i - FIRST_BYTE])
            else:
                raw += self.chunk_of[i].encode()
        return raw.decode(errors="replace").removeprefix(" ")
