"""What binds and what is saved: counts against a whole pass, times under a clock of our own."""

import itertools

import pytest

from stts_mini.lab.speed import passes, pays
from stts_mini.lab.speed.flops import decoded, evenly_kept, multiply_adds, needed
from stts_mini.lab.speed.page import STAGES
from tests.lab.speed.test_bench import TINY


def test_the_parts_are_all_of_the_count():
    """The prefill gives an answer's first token; each other one costs a pass, and so does the end."""
    config, ask = TINY.config, dict(question=3, answer=1)
    one, two = (sum(pays.counted(TINY, 4, 0.5, 3, answer).values()) for answer in (1, 2))
    prefix = 4 * 4 - 8 + 3 * 4 + 3  # half of 4 cells in 4 frames, a stamp and two marks each, the question
    assert two - one == sum(multiply_adds(config, decoded(config, [prefix + 1])).values())
    work = needed(config, [evenly_kept(0.5, config.cells, 4)], 0.5, [[(3, 0)]], TINY.stamp)
    first = (*multiply_adds(config, work).values(), *multiply_adds(config, decoded(config, [prefix])).values())
    assert one == sum(first) and sorted(itertools.chain(*pays.PARTS.values())) == sorted(STAGES)
    whole, pruned = (pays.counted(TINY, 4, k, **ask) for k in (0.0, 0.5))
    assert set(whole) == set(pays.PARTS) and all(pruned[part] < whole[part] for part in whole)


def test_seconds_go_to_their_parts(monkeypatch):
    """Each LLM pass takes ten seconds, each block of the ViT one."""
    clock = [0.0]
    real = passes.job

    def job(model, *rest):
        task = real(model, *rest)
        task.now = lambda: clock[0]
        for block in model.vit.blocks:
            block.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1))
        for layer in model.llm.layers:
            layer.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 10))
        return task

    monkeypatch.setattr(passes, "job", job)
    for seconds in pays.measured(TINY, 3, 0.5, question=4, answer=2, rounds=2):
        assert seconds == {"ViT, scorer, packing": 5, "prefill": 10, "decoding tokens": 20}


def test_the_command_says_what_binds(monkeypatch, capsys):
    monkeypatch.setitem(passes.SHAPES, "toy", TINY)
    monkeypatch.setattr(pays, "measured", lambda shape, n, k, *_: [dict.fromkeys(pays.PARTS, x) for x in (2, 9 / n)])
    monkeypatch.setattr(pays, "file_seconds", lambda frames, size: 4.0)
    pays.main(["--pays", "--frames", "6", "--k", "0.5"])
    said = capsys.readouterr().out
    assert "| decoding the file | 4000.00 | 4000.00 | 40% |" in said and "| all | 10000.00 | 8500.00 | 100% |" in said
    assert "What binds: decoding the file. To be saved: 15%, 1.18 times as fast." in said
    assert "it pays from 6 frames on" in said and "So400m + Qwen3-0.6B, by count alone" in said
    with pytest.raises(SystemExit, match="--k 0 removes nothing"):
        pays.main(["--pays", "--k", "0"])


def test_a_file_is_read(monkeypatch):
    seen, real = [], pays.read_video
    monkeypatch.setattr(pays, "read_video", lambda *args: seen.append(real(*args)))
    assert pays.file_seconds(3, 16, rounds=1) > 0 and pays.file_seconds(200, 16, rounds=1) > 0
    assert [len(set(video.times)) for video in seen] == [3, 200]  # none of them twice
