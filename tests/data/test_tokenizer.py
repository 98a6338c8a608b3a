"""Any text round-trips; a word and a stamp are one token each; specials cannot be typed."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stts_mini.data.batches import TOKENIZER
from stts_mini.data.tokenizer import FIRST_BYTE, SPECIAL, Tokenizer
from stts_mini.toy import world

anything = st.characters(exclude_categories=["Cs"])  # no lone surrogates
pieces = st.lists(
    st.sampled_from(["red", " ", "12.5", "128.0", "9", ".", "?", "circle", "redcircle", "<end>", "é", "\n"])
)


@given(st.one_of(st.text(anything), pieces.map("".join), pieces.map(" ".join)))
@example(" red")
@example("")
@example("12.55 1.2.3 0.05")
def test_any_text_round_trips(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(FIRST_BYTE <= i < len(TOKENIZER) for i in ids)


def test_words_of_the_world_and_stamps_are_one_token():
    for word in [*world.words(), "0.0", "12.5", "128.0"]:
        assert len(TOKENIZER.encode(word)) == 1, word
    assert TOKENIZER.encode("128.1") != TOKENIZER.encode("128.0") and len(TOKENIZER.encode("128.1")) > 1
    assert TOKENIZER.encode("41.5") == [TOKENIZER.stamp(41.5)]
    assert TOKENIZER.stamp(41.5) in TOKENIZER.encode("at 41.5 s")


def test_every_question_of_the_world_is_whole_words():
    for kind in world.SCENES:
        for seed in range(30):
            for q in world.make_scene("train", kind, seed).questions:
                assert len(TOKENIZER.encode(q.text)) == len(q.text.split())
                assert all(len(TOKENIZER.encode(option)) == len(option.split()) for option in q.options)


def test_half_a_character_is_refused():
    for read in (TOKENIZER.encode, TOKENIZER.prompt, lambda text: TOKENIZER.prompt("who ?", ["he", text])):
        with pytest.raises(ValueError, match=r"no UTF-8 near .*: give whole characters"):
            read("caf\udce9")


def test_specials_show_by_name_and_broken_bytes_do_not_raise():
    tokenizer = Tokenizer([])
    assert tokenizer.decode([1]) == "<end>" and len(SPECIAL) == FIRST_BYTE
    assert tokenizer.decode([FIRST_BYTE + 0xFF]) == "�"
