"""Answers in a conversation are the model's own: the same as `generate`'s and `evaluate`'s, in any order."""

import builtins
from types import SimpleNamespace

import av
import pytest
import torch

from stts_mini.data.batches import TOKENIZER, Reader, collate
from stts_mini.data.clips import load_clips, prepare
from stts_mini.data.tokenizer import END
from stts_mini.eval import option_likelihoods
from stts_mini.lab import ask
from stts_mini.lab.ask import Conversation
from stts_mini.train import train
from stts_mini.training.logging import one_line_errors
from tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny model after a few steps (its embeddings are spread, so that answers are not all the same)."""
    folder = tmp_path_factory.mktemp("ask")
    config = tiny(folder, steps=5)
    model = train(config, False, CPU)
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=1.0)
    clips = load_clips(prepare(config.data, "val", {"short": 3, "image": 1}, 48))
    return model.eval(), clips, folder


def test_a_conversation_answers_as_generate_does(trained):
    (model, clips, _), every = trained, set()
    for clip in clips:
        talk = Conversation(model, TOKENIZER, clip, Reader(4, 48), 0.5)
        questions = [qa.question for qa in clip.qa][:4]
        said = ["".join(talk.answer(q, max_new_tokens=5)) for q in questions]
        prompts = [(TOKENIZER.prompt(q), []) for q in questions]
        batch = collate([Reader(4, 48)(clip)], [prompts])
        ids = model.generate(batch, 0.5, max_new_tokens=5)[0]
        expected = [TOKENIZER.decode(own) + "…" * (len(own) == 5) for own in ids]  # cut, as in an evaluation
        assert said == expected
        every.update(said)
        again = ["".join(talk.answer(q, max_new_tokens=5)) for q in reversed(questions)]
        assert again == expected[::-1]  # what was asked before leaves no trace
    assert len(every) > 3


@pytest.mark.parametrize("end", [[], [END]])
def test_half_a_character_waits_for_the_rest_and_is_not_lost(end, trained, monkeypatch):
    model, clips, _ = trained
    talk = Conversation(model, TOKENIZER, clips[0], Reader(4, 48), 0.5)
    ids = [TOKENIZER.bytes_of.index(bytes([byte])) for byte in "éé".encode()[:3]]
    said = iter([*ids, *end])
    one_hot = lambda _: torch.eye(model.config.llm.vocab_size)[next(said)]
    monkeypatch.setattr(model.llm, "logits", one_hot)
    assert list(talk.answer("what ?", max_new_tokens=len(ids) + len(end))) == ["é", "\ufffd" if end else "\ufffd…"]
    assert TOKENIZER.decode(ids) == "é\ufffd"  # as the exam has it


def test_options_are_as_likely_as_in_an_evaluation(trained):
    model, clips, _ = trained
    qa = clips[0].qa[0]
    talk = Conversation(model, TOKENIZER, clips[0], Reader(4, 48), 0.5)
    ranked = talk.likelihoods(qa.question, ["red", "blue green", "white"])
    prompt = TOKENIZER.prompt(qa.question, ["red", "blue green", "white"])
    choices = [(prompt, TOKENIZER.encode(option)) for option in ("red", "blue green", "white")]
    with torch.no_grad():
        output = model(collate([Reader(4, 48)(clips[0])], [choices]), 0.5)
    expected = dict(zip(("red", "blue green", "white"), option_likelihoods(output).tolist(), strict=True))
    assert dict(ranked) == pytest.approx(expected, rel=1e-4)
    assert [score for _, score in ranked] == sorted(dict(ranked).values(), reverse=True)


def test_the_command_shows_tokens_times_and_answers(trained, capsys, monkeypatch):
    _, clips, folder = trained
    flags = ["--checkpoint", str(folder / "run" / "checkpoint.pt")]
    ask.main([str(clips[0].video), "what colour is the circle ?", "--options", "red", "blue", "--k", "0.8", *flags])
    said = capsys.readouterr().out
    assert "4 frames, 9 of 36 cells kept (packed rows: 1), 21 tokens before a question (k = 0.8)" in said
    assert all(word in said for word in ("read", "encode", "prefill", "decode", "options", " ms", "red", "blue"))
    questions = iter(["who ?", "wh\udce9 ?", "what ?", ""])  # the second is no text
    monkeypatch.setattr(builtins, "input", lambda _: next(questions))
    ask.main([str(clips[0].video), *flags])
    said = capsys.readouterr().out.splitlines()
    times = [line for line in said if " ms" in line]
    assert sum("no UTF-8 near" in line for line in said) == 1
    assert len(times) == 2 and "encode" in times[0] and "encode" not in times[1]  # one video, read once
    ask.main([str(clips[3].video), "who ?", "--pictures", str(clips[3].video), *flags])
    assert "2 frames, 18 of 18 cells kept" in capsys.readouterr().out
    half = folder / "half.mkv"
    with av.open(str(clips[0].video)) as source, av.open(str(half), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    half.write_bytes(half.read_bytes()[:-200])
    ask.main([str(half), "who ?", *flags])
    assert (
        f"broken or missing, and left out: 1 packets or frames of 1 clips, 1 of them of {half}"
        in capsys.readouterr().out
    )


def test_no_answer_and_no_option_sends_codes_to_the_terminal(capsys):
    codes = "\x1b[31m"
    talk = SimpleNamespace(answer=lambda *_: ["a", codes], likelihoods=lambda *_: [(codes, -1.0)], seconds={})
    ask.ask(talk, "who ?", [codes])
    said = capsys.readouterr().out
    assert said.startswith("a\\x1b[31m\n  \\x1b[31m") and "\x1b" not in said


def test_errors_are_one_line(trained, tmp_path):
    _, clips, folder = trained
    flags = ["--checkpoint", str(folder / "run" / "checkpoint.pt")]
    with pytest.raises(SystemExit, match=r"no checkpoint at .*: `python -m stts_mini.train` makes one"):
        ask.main([str(clips[0].video), "who ?", "--checkpoint", str(tmp_path / "none.pt")])
    with pytest.raises(SystemExit, match="the question is empty"):
        ask.main([str(clips[0].video), " ", *flags])
    for options in (["red", "red "], ["red", ""]):
        with pytest.raises(SystemExit, match=r"--options .*: give each text once, and none empty"):
            ask.main([str(clips[0].video), "who ?", *flags, "--options", *options])
    with pytest.raises(SystemExit, match=r"no such file: .*none.mp4"):
        ask.main([str(tmp_path / "none.mp4"), "who ?", *flags])
    with pytest.raises(SystemExit, match="--frames 0: give 1 or more"):
        ask.main([str(clips[0].video), "who ?", "--frames", "0", *flags])
    no_package = pytest.raises(SystemExit, match=r"lab.x: error: No module named 'no_such': pip install no_such")
    with no_package, one_line_errors("lab.x"):
        import no_such  # noqa: F401
