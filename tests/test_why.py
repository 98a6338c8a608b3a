"""Why was it wrong? Models that are wrong for one reason each, by construction, and counts by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini.data.batches import Reader, pick_questions
from stts_mini.data.clips import OWN, Clip, held_out
from stts_mini.eval import evaluate, evidence_per_cell, kept_shares
from stts_mini.report.result import CUT, Result, merged, why_wrong, wrong_kinds, wrong_table
from stts_mini.toy import world
from stts_mini.toy.drawing import evidence
from stts_mini.train import build_model, train
from stts_mini.training import checkpoint
from tests.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("why"))
    return build_model(config, CPU), held_out(config.data, 48, 3), config


def made_up(answers, shares=None):
    """A result of one task, by clip number."""
    result = Result()
    result.correct["choice"]["count"] = sorted(answers.items())
    result.shares = {"count": shares} if shares else {}
    return result


def test_the_first_reason_that_holds_counts():
    every = [(0, known, share) for known in (0, 1) for share in (0.0, CUT - 1e-9, CUT, 1.0, None)]
    kinds = wrong_kinds(*zip(*every, strict=True))
    assert kinds == dict(unpruned=5, pruned=2, unused=3)
    assert wrong_kinds([1] * 3, [0] * 3, [0.0] * 3) == dict(unpruned=0, pruned=0, unused=0)  # right is right
    assert wrong_kinds([0, 0], [1, 1], [0.4, 0.5]) == dict(unpruned=0, pruned=1, unused=1)
    with pytest.raises(ValueError, match="shorter"):
        wrong_kinds([0, 0], [1, 1], [0.5])


def test_answers_are_matched_with_the_evidence_of_their_own_clip():
    """Clips are numbered with gaps: some could not be read, some are somebody's own and have no shares."""
    ours, theirs = made_up({2: 0, 5: 0, 7: 0, 9: 1}, {9: 0.0, 7: 0.0, 2: 1.0}), made_up({2: 1, 5: 0, 7: 1, 9: 1})
    kinds = why_wrong(ours, theirs)
    assert kinds == {"count": dict(unpruned=0, pruned=1, unused=1)}
    lines = wrong_table(ours, kinds).splitlines()
    assert lines[1].split() == ["count", "66.7%", "0.0%", "33.3%", "33.3%", "3"] and len(lines) == 3


def test_a_group_is_the_mean_of_its_tasks():
    result = Result(shares={"count": dict.fromkeys(range(4), 1.0), "speed": dict.fromkeys(range(2), 1.0)})
    kinds = {"speed": dict(unpruned=1, pruned=0, unused=0), "count": dict(unpruned=0, pruned=1, unused=2)}
    mean = wrong_table(result, kinds).splitlines()[-1]
    assert mean.split() == ["short", "(mean)", "62.5%", "25.0%", "12.5%", "25.0%", "6"]


def test_what_is_seen_of_a_questions_objects(setup):
    """Pixel by pixel: of each object of this very question, the best frame after the first; of the objects, the least
    well seen that is in view at all."""
    rng, several, none = np.random.default_rng(0), 0, 0
    for clip in setup[1][:9]:
        video = Reader(6, 48)(clip)
        keep = rng.random((len(video.frames), 9)) < 0.2
        scene, shown = world.make_scene(clip.split, clip.kind, clip.seed), keep.reshape(-1, 3, 3)
        shown = shown.repeat(16, 1).repeat(16, 2)  # (T, 48, 48)
        shares = kept_shares(clip, video, keep)
        assert set(shares) == set(world.TASKS[clip.kind])
        for qa, _ in pick_questions(clip):
            (question,) = (q for q in scene.questions if (q.task, q.text) == (qa.task, qa.question))
            least = []
            for part in question.evidence:
                mask = evidence(scene, (replace(question, evidence=(part,)),), np.array(video.times), 48)
                frames = [t for t in range(1, len(mask)) if mask[t].any()]
                least += [max((mask[t] & shown[t]).sum() / mask[t].sum() for t in frames)] if frames else []
            assert shares[qa.task] == (min(least) if least else None)
            several, none = several + (len(least) > 1), none + (not least)
    assert several > 5 and none > 0


def test_images_and_clips_of_ones_own_are_left_out(setup):
    image = setup[1][-1]
    video, keep = Reader(4, 48)(image), np.ones((1, 9), bool)
    assert image.kind == "image" and kept_shares(image, video, keep) == {}
    assert kept_shares(Clip(Path("a.mp4"), OWN, OWN, 1, image.qa), video, keep) == {}


def test_what_one_frame_shows_is_no_evidence(setup):
    clip = setup[1][0]
    assert set(kept_shares(clip, Reader(1, 48)(clip), np.ones((1, 9), bool)).values()) == {None}


def test_models_that_are_wrong_for_one_reason_each(setup, monkeypatch):
    """The scorer of clip 0 puts the evidence last, that of clip 1 first. Pruned, the model is wrong on all but clip 3;
    unpruned, on clip 2 alone, whose evidence is pruned, too."""
    model, _, config = setup
    clips = held_out(config.data, 48, 4, kinds=["watch"])

    def annotate(clip, video):
        some = evidence_per_cell(clip, video, 3)["event-count"] > 0
        return np.where(some, *((1.0, 0.5) if clip is clips[1] else (0.0, 0.5))) + np.arange(9) / 100

    def asked(k, right):
        flat = iter([
            float((option == qa.answer) == right(n)) for n, clip in enumerate(clips)
            for qa, shown in pick_questions(clip) for option in shown
        ])  # fmt: skip
        likelihoods = lambda output: torch.tensor([next(flat) for _ in range(int(output.branch[-1]) + 1)])
        monkeypatch.setattr(evaluation, "option_likelihoods", likelihoods)
        return evaluate(model, clips, Reader(4, 48), k, generate=False, batch_size=3, annotate=annotate)

    result, whole = asked(0.5, lambda n: n == 3), asked(0.0, lambda n: n != 2)
    assert all(share == 1 for share in whole.shares["event-count"].values())
    shares = result.shares["event-count"]
    assert list(shares) == [0, 1, 2, 3] and shares[0] == shares[2] == 0 and shares[1] == 1
    kinds = why_wrong(result, whole)
    assert kinds["event-count"] == dict(unpruned=1, pruned=1, unused=1)
    for task, counts in kinds.items():
        assert sum(counts.values()) == 3 == sum(1 - right for _, right in result.answers(task))
    assert why_wrong(merged([result, Result()]), whole) == kinds  # of several processes


def test_the_command_says_why(setup, tmp_path, capsys, monkeypatch):
    """Only where it is asked to; the other numbers stay. The reference is the model itself, or another one."""
    config, said = tiny(tmp_path, out=str(tmp_path / "run"), data=setup[2].data), {}
    train(config, False, CPU)
    path, other = str(tmp_path / "run" / "checkpoint.pt"), str(tmp_path / "run" / "other.pt")
    state = checkpoint.load(path)
    torch.save({**state, "model": {name: w + torch.randn_like(w) for name, w in state["model"].items()}}, other)
    asked = []
    spied = lambda *args, **options: asked.append((options.get("name"), args[3])) or evaluate(*args, **options)
    monkeypatch.setattr(evaluation, "evaluate", spied)
    flags = ["--data", config.data, "--clips", "3", "--json", str(tmp_path / "a.json")]
    for name, more in dict(plain=[], itself=["--why"], other=["--why", other]).items():
        capsys.readouterr()
        evaluation.main([path, *flags, *more])
        said[name] = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())
    assert asked[-1] == ("unpruned", 0.0) and len(asked) == 2 + 3 + 3
    assert said["other"][1]["why_wrong"] != said["itself"][1]["why_wrong"]
    text, numbers = said["itself"]
    assert text.startswith(said["plain"][0].rstrip("\n")) and "why wrong" not in said["plain"][0]
    kinds = numbers.pop("why_wrong")
    assert numbers == said["plain"][1]
    for task, counts in kinds.items():
        scoring = "generated" if task in world.GENERATED else "choice"
        assert sum(counts.values()) == round(3 * (1 - numbers[scoring][task]))
    with pytest.raises(SystemExit, match=r"--why is for a pruned model: give a --k above 0"):
        evaluation.main([path, *flags, "--why", "--k", "0"])
    with pytest.raises(SystemExit, match=r"--why is for the toy world's clips, .*: leave out --data"):
        evaluation.main([path, "--data", str(next(Path(config.data).rglob("*.jsonl"))), "--why"])
    with pytest.raises(SystemExit, match="is also an input"):
        evaluation.main([path, *flags[:-1], other, "--why", other])
    smaller = build_model(tiny(tmp_path, image_size=24, patch_size=4), CPU)
    checkpoint.save(
        other, smaller, **{name: x for name, x in state.items() if name not in ("format", "model", "model_config")}
    )
    with pytest.raises(SystemExit, match="frames of 48 pixels, of 24"):
        evaluation.main([path, *flags, "--why", other])
