"""The command for whoever has a GPU: whatever becomes of one part, the next one runs, and the page says so."""

import json
import time

import pytest
import torch

from stts_mini.lab import gpu_check
from stts_mini.lab.gpu_check import main, parts_of
from stts_mini.lab.speed.bench import parser_of_flags
from stts_mini.lab.speed.passes import SHAPES
from stts_mini.training.config import parse_flags


def hows(path):
    return {record["part"]: record["how"] for record in json.loads(path.with_suffix(".json").read_text())["parts"]}


def test_it_goes_on_after_each_failure_and_says_so(tmp_path, monkeypatch, capsys):
    once = lambda code: ["timeit", "-n", "1", "-r", "1", code]
    hangs = "import subprocess; print('hello', flush=True); subprocess.run(['sleep', '60'])"
    parts = [
        ("breaks", once("1/0"), 60, ""), ("hangs", once(hangs), 1, ""), ("speed", once("pass"), 60, ""),
        ("skipped", ["nowhere"], 60, "no reason"), ("tests", once("print('2 passed')"), 60, ""),
    ]  # fmt: skip
    there, real = [], gpu_check.run
    written = lambda: sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(gpu_check, "run", lambda *part: there.append(written()) or real(*part))
    monkeypatch.setattr(gpu_check, "parts_of", lambda device, folder: parts)
    began = time.monotonic()
    with pytest.raises(SystemExit) as end:
        main(["--device", "cpu", "-o", str(tmp_path / "mine")])
    assert end.value.code == 1 and time.monotonic() - began < 30  # who hangs has a child, which ended with it
    assert there == [[], *[["mine.json", "mine.md"]] * 4]  # written after every part
    assert hows(tmp_path / "mine") == {
        "breaks": "failed: exit status 1", "hangs": "failed: not done after 1 s", "skipped": "skipped: no reason",
        "speed": hows(tmp_path / "mine")["speed"], "tests": "done",
    }  # fmt: skip
    assert hows(tmp_path / "mine")["speed"].startswith("failed: what it wrote cannot be read (FileNotFoundError")
    page = (tmp_path / "mine.md").read_text()
    assert "ZeroDivisionError" in page and "hello" in page and "torch " + torch.__version__ in page
    assert page in capsys.readouterr().out


@pytest.mark.parametrize("capability, kernel", [((7, 5), False), ((9, 0), True)])
def test_what_a_gpu_is_asked(capability, kernel, tmp_path, monkeypatch):
    """The flags are such as the commands take; ten minutes, some more if all take as long as they may."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    parts = parts_of(torch.device("cuda"), tmp_path)
    assert [part[0] for part in parts] == ["tests", "training", "speed", "speed --varlen", "speed --compile"]
    assert [not skip for *_, skip in parts] == [True, True, True, kernel, True] and sum(p[2] for p in parts) <= 660
    config, args = parse_flags(parts[1][1][1:])
    assert args.preset == "gpu" and config.device == "cuda" and config.steps == 40 and config.vit_width == 384
    for _, words, _, _ in parts[2:]:
        args = parser_of_flags().parse_args(words[1:])
        assert SHAPES[args.shape].cuda_only and args.device == "cuda" and args.k[0] == 0 and args.load == [(2, 64)]


@pytest.mark.slow  # half a minute
def test_the_command_on_a_cpu(tmp_path, capsys):
    main(["--device", "cpu", "-o", str(tmp_path / "mine")])
    skipped = {"speed --varlen": "skipped: it is for CUDA, Ampere or newer"}
    skipped |= {"speed --compile": "skipped: it takes minutes on a CPU"}
    assert hows(tmp_path / "mine") == dict.fromkeys(("tests", "training", "speed"), "done") | skipped
    tests, training, speed, *_ = json.loads((tmp_path / "mine.json").read_text())["parts"]
    assert "passed" in tests["measured"]["tests"] and "failed" not in tests["measured"]["tests"]
    assert training["measured"].keys() == {"seconds_of_a_pruned_step", "estimated_gb", "pruned_step_over_unpruned"}
    assert {row["what"] for row in speed["measured"]["speed"]} == {"training", "inference"}
    assert "| training | 1 × 2 | 0.5 |" in capsys.readouterr().out
