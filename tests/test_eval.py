"""Scores that can be checked by hand: likelihoods, look-up, intervals, counts of what was kept."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini.data.batches import TOKENIZER, Reader
from stts_mini.data.clips import OWN, QA, Clip, held_out, normalised, parse_clip
from stts_mini.data.video import Video
from stts_mini.eval import evaluate, look_up, option_likelihoods, pick_questions
from stts_mini.model import Encoded, Output
from stts_mini.report.result import Result, table
from stts_mini.toy import world
from stts_mini.toy.drawing import evidence
from stts_mini.train import build_model
from tests.tiny import tiny


def clip(kind="short", seed=0, split="train", qa=()):
    return Clip(Path("none.mp4"), kind, split, seed, tuple(qa))


def ask(task, question, answer, options=("red", "blue")):
    return QA(task, question, answer, tuple(options))


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    config = tiny(folder)
    return build_model(config, torch.device("cpu")), held_out(config.data, 48, 3)


def test_a_test_set_holds_what_is_judged_and_nothing_else(setup):
    kinds = [clip.kind for clip in setup[1]]
    assert kinds == ["short"] * 3 + ["watch"] * 3 + ["parade"] * 3 + ["image"] * 3


def test_likelihoods_sum_over_an_options_tokens_and_its_end():
    logits = torch.randn(5, 7)
    targets, branch = torch.tensor([3, 4, 1, 2, 1]), torch.tensor([0, 0, 0, 1, 1])
    output = Output(torch.zeros(()), 0.0, logits, targets, branch, 0, None)
    p = logits.log_softmax(-1)
    torch.testing.assert_close(
        option_likelihoods(output), torch.stack([p[0, 3] + p[1, 4] + p[2, 1], p[3, 2] + p[4, 1]])
    )


@pytest.mark.parametrize("answer", ["number 7", "number 77", "number 778"])
def test_an_option_that_begins_like_another_can_be_right_and_wrong(setup, monkeypatch, answer):
    """A model that is nearly sure of one text chooses it, be it the shortest of the options or the longest."""
    model, clips = setup
    one = replace(clips[0], kind=OWN, qa=(ask("question", "which ?", answer, ("number 7", "number 77", "number 778")),))
    forward, ids = model.forward, [*TOKENIZER.encode(answer), TOKENIZER.marks.end]

    def sure(*args):
        output = forward(*args)
        starts = [0, *(1 + (output.branch[1:] != output.branch[:-1]).nonzero().flatten()).tolist()]
        logits = torch.zeros_like(output.logits)
        for row in range(len(logits)):  # the answer's next token, as long as what stands before it is the answer's
            start = max(s for s in starts if s <= row)
            if output.targets[start:row].tolist() == ids[: row - start]:
                logits[row, ids[row - start]] = 9.0
        return replace(output, logits=logits)

    monkeypatch.setattr(model, "forward", sure)
    result = evaluate(model, [one], Reader(4, 48), 0.5, generate=False)
    assert result.correct["choice"] == {"question": [(0, 1)]}


def test_answers_are_compared_as_normalised_texts(setup, monkeypatch):
    """Composed and decomposed letters, white space, and, if lenient, case and a full stop; never anything more."""
    model, clips = setup
    answers = ["le cafe\u0301  noir", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "The Red one.", "red, blue", "12.5"]
    said = ["le café\u00a0noir ", "한국", "the red one", "red blue", "12.50"]
    own = [replace(clips[0], kind=OWN, qa=(ask("free", f"{n} ?", a, ()),)) for n, a in enumerate(answers)]
    learned = [replace(clips[0], kind=OWN, qa=(ask("free", f"{n}  ?", a, ()),)) for n, a in enumerate(said)]
    monkeypatch.setattr(model, "generate", lambda *_, **__: [[TOKENIZER.encode(text)] for text in said])
    for lenient, right in ((False, [1, 1, 0, 0, 0]), (True, [1, 1, 1, 0, 0])):
        result = evaluate(model, own, Reader(4, 48), 0.5, lenient=lenient)
        assert result.correct["generated"]["free"] == list(enumerate(right))
        assert look_up(learned, own, lenient) == {"free": sum(right) / 5}
    assert normalised("À LA CARTE .", lenient=True) == normalised("a\u0300 la\ncarte", lenient=True) == "à la carte"


def test_an_answer_longer_than_sixteen_tokens_needs_its_end(setup, monkeypatch):
    """What goes on behind the right words is wrong, however long they are."""
    model, clips = setup
    answer, asked = "the man opens the door and leaves the house", []
    own = [replace(clips[0], kind=OWN, qa=(ask("free", "what ?", text, ()),)) for text in (answer, "red")]
    for behind, right in ((" again", 0), ("", 1)):

        def speak(batch, k, most, behind=behind, **_):
            asked.append(most)
            return [[TOKENIZER.encode(text + behind)[:most]] for text in (answer, "red")]

        monkeypatch.setattr(model, "generate", speak)
        result = evaluate(model, own, Reader(4, 48), 0.5)
        assert result.correct["generated"]["free"] == [(0, right), (1, right)]
        assert result.said[0] == (0, "what ?", answer if right else f"{answer} …", answer, right)
    assert set(asked) == {len(TOKENIZER.encode(answer)) + 1}
    monkeypatch.setattr(model, "generate", lambda batch, k, most, **_: asked.append(most) or [[[]]])
    evaluate(model, own[1:], Reader(4, 48), 0.5)
    assert asked[-1] == 16  # for short ones, as ever


def test_options_are_texts_that_differ_once_normalised():
    line = lambda *options: json.dumps(dict(video="a", qa=[dict(question="?", answer="cafe\u0301", options=options)]))
    qa = parse_clip(line("tea", "café"), 1, Path()).qa[0]
    assert qa.answer == "café" and qa.options == ("tea", "café")  # the option as it stands
    for twins in (("café", "cafe\u0301"), ("a  b", "a b", "café")):
        with pytest.raises(ValueError, match="an option comes twice"):
            parse_clip(line(*twins), 1, Path())


def test_questions_and_options_are_the_same_for_every_model_and_balanced():
    seen = []
    for seed in range(60):
        scene = world.make_scene("test", "short", seed)
        one = clip(seed=seed, qa=[ask(q.task, q.text, q.answer, q.options) for q in scene.questions])
        picked = pick_questions(one)
        assert picked == pick_questions(one)
        assert {qa.task for qa, _ in picked} == set(world.SHORT_TASKS) and len(picked) == 6
        for qa, shown in picked:
            assert qa.answer in shown and len(set(shown)) == len(shown) == min(4, len(qa.options))
            seen.append(shown.index(qa.answer) / len(shown))
    assert 0.3 < np.mean(seen) < 0.45  # places 0, ¼, ½, ¾ (and 0, ½): the answer stands anywhere


def test_look_up_is_counted_by_hand():
    train = [clip(qa=[ask("speed", "which ?", "red"), ask("speed", "which ?", "red"), ask("speed", "which ?", "blue")])]
    test = [
        clip(qa=[ask("speed", "which ?", "red")]),  # right
        clip(qa=[ask("speed", "which ?", "blue")]),  # wrong
        clip(qa=[ask("speed", "who ?", "blue")]),  # never seen: a guess among two
        clip("watch", qa=[ask("needle", "which ?", "red")]),  # another kind: never seen either
    ]
    assert look_up(train, test) == {"speed": 0.5, "needle": 0.5}
    timed = [clip(qa=[ask("speed", f"which at {t} s ?", "red")]) for t in ("1.5", "31.0")]
    assert look_up(timed[:1], timed[1:]) == {"speed": 1.0}  # whatever times are named
    order = lambda answer: clip("parade", qa=[ask("open", "order ?", answer, ("red blue", "blue red"))])
    said = [order("red blue"), order("red blue"), order("blue red")]
    assert look_up(said, said) == {"open": 2 / 3}  # always the commonest of all answers
    assert look_up([], said) == {"open": 0}


def test_means_and_intervals():
    result = Result()
    result.correct["choice"]["a"] = [(n, n % 2) for n in range(400)]
    result.correct["choice"]["b"] = [(n, 1) for n in range(0, 400, 4)]
    assert result.accuracy("a") == 0.5 and result.mean(["a", "b"]) == 0.75
    low, high = result.interval(["a"])
    assert 0.43 < low < 0.47 and 0.53 < high < 0.57  # 0.5 ± 1.96·√(¼/400)
    assert result.interval(["b"]) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    means = [np.mean(rng.integers(400, size=400) % 2) for _ in range(4000)]
    assert np.allclose((low, high), np.percentile(means, (2.5, 97.5)), atol=0.004)  # of 90% they lie 0.008 further in
    assert result.interval(["a"]) == (low, high)


def test_evaluate_scores_a_model_that_knows_everything(setup, monkeypatch):
    """An LLM replaced by an oracle gets 100% in both scorings; one that is always wrong gets 0%."""
    model, clips = setup
    answers = {}
    for n, c in enumerate(clips):
        for qa, _ in pick_questions(c):
            answers[n, qa.task] = qa.answer

    def oracle(right):
        asked = iter(sorted_questions)

        def generate(batch, *_, **__):
            return [
                [TOKENIZER.encode(answers[next(asked)] if right else "zz") for _ in video] for video in batch.branches
            ]

        def likelihoods(output):
            return torch.tensor([next(scores) for _ in range(int(output.branch[-1]) + 1)])

        flat = [
            float((option == qa.answer) == right) for n, c in enumerate(clips) for qa, shown in pick_questions(c)
            for option in shown
        ]  # fmt: skip
        scores = iter(flat)
        monkeypatch.setattr(model, "generate", generate)
        monkeypatch.setattr(evaluation, "option_likelihoods", likelihoods)

    sorted_questions = [(n, qa.task) for n, c in enumerate(clips) for qa, _ in pick_questions(c)]
    for right in (True, False):
        oracle(right)
        result = evaluate(model, clips, Reader(4, 48), 0.5, batch_size=4)
        for scoring in ("choice", "generated"):
            assert all(result.accuracy(task, scoring) == right for task in result.correct[scoring])
        assert len(result.said) == len(sorted_questions)
        assert all((a.said == a.expected) == a.right == right for a in result.said)
        assert set(result.correct["choice"]) == {
            *world.SHORT_TASKS,
            *world.LONG_TASKS,
            "image/attribute",
            "image/count",
        }


@pytest.mark.parametrize("at_most", [1, 200])
def test_many_questions_are_read_in_rounds_and_answered_as_at_once(at_most, setup, monkeypatch):
    """So that an exam needs little more memory than a training step. Every clip is encoded once."""
    model, clips = setup
    lengths, encoded, read, encode = [], [], model.read, model.encode_video
    length_of = lambda own: sum(len(prompt) + len(answer) for prompt, answer in own)
    spied = lambda batch, *rest: lengths.extend(map(length_of, batch.branches)) or read(batch, *rest)
    monkeypatch.setattr(model, "read", spied)
    monkeypatch.setattr(model, "encode_video", lambda *args: encoded.append(1) or encode(*args))
    whole = evaluate(model, clips, Reader(4, 48), 0.5, batch_size=4)
    batches, together = len(encoded), max(lengths)
    lengths.clear()
    monkeypatch.setattr(evaluation, "ROUND", at_most)
    rounds = evaluate(model, clips, Reader(4, 48), 0.5, batch_size=4)
    assert len(encoded) == 2 * batches and max(lengths) <= max(at_most, 140) < together  # one question has up to 140
    assert sorted(map(str, rounds.said)) == sorted(map(str, whole.said)) and rounds.rows == whole.rows
    for scoring, tasks in whole.correct.items():
        assert all(sorted(rounds.correct[scoring][task]) == sorted(of) for task, of in tasks.items())
    assert rounds.chance == whole.chance


def test_kept_cells_and_evidence_are_counted(setup):
    model, clips = setup
    short = [c for c in clips if c.kind == "short"]
    everything = evaluate(model, short, Reader(4, 48), 0.0, generate=False)
    assert everything.cells == everything.kept == 3 * 4 * 9
    assert all(kept == every for kept, every in everything.evidence.values()) and everything.evidence_kept() == 1
    half = evaluate(model, short, Reader(4, 48), 0.5, generate=False)
    assert half.kept == 3 * 18 and half.evidence.keys() == everything.evidence.keys() and half.evidence_kept() < 1
    assert all(half.evidence[t][1] == everything.evidence[t][1] for t in half.evidence)
    blind = evaluate(model, short, Reader(4, 48), 0.0, model.encode_blind, generate=False)
    assert blind.kept == blind.cells == 0
    text = table(half, blind, dict.fromkeys(world.SHORT_TASKS, 0.25))
    assert "vision tokens of videos kept: 54 of 108 (50.0%)" in text and "short (mean)" in text


def test_pictures_are_no_part_of_the_tokens_of_videos(setup):
    """Neither a single one nor several: none of them loses any, and they would make every share look larger."""
    kept = torch.tensor([[9, 0], [9, 9], [9, 4]])
    keep = torch.arange(9) < kept[..., None]
    videos = [
        Video(np.zeros((n, 48, 48, 3), np.uint8), [0.0] * n, 0.0, still=s)
        for n, s in ((1, False), (2, True), (2, False))
    ]
    encoded = Encoded(torch.zeros(40, 8), kept, kept > 0, keep.nonzero(), keep)
    evaluation._count_kept(result := Result(), encoded, [clip("own")] * 3, videos, range(3))
    assert (result.kept, result.cells, result.evidence) == (13, 18, {})


def test_evidence_is_weighed_by_pixels_in_kept_cells(setup):
    model, clips = setup
    one = clips[0]
    video = Reader(4, 48)(one)
    scene = world.make_scene(one.split, one.kind, one.seed)
    keep = torch.zeros(1, 4, 9, dtype=torch.bool)
    keep[0, 3, 4] = True  # the middle cell of the last frame: pixels 16..31
    result = Result()
    zero = torch.zeros(1, 4, dtype=torch.long)
    evaluation._count_kept(result, Encoded(torch.zeros(0, 8), zero, zero.bool(), zero, keep), [one], [video], [7])
    for task in world.SHORT_TASKS:
        pixels = evidence(scene, tuple(q for q in scene.questions if q.task == task), np.array(video.times), 48)
        assert result.evidence[task] == (int(pixels[3, 16:32, 16:32].sum()), int(pixels.sum()))
    result.evidence = {"a": (1, 2), "b": (3, 4), "none": (0, 0)}
    assert result.evidence_kept() == 0.625 and np.isnan(Result().evidence_kept())


def test_options_are_shown_in_many_orders(setup):
    asked = [(qa.question, shown) for c in setup[1] if c.kind == "short" for qa, shown in pick_questions(c)]
    assert len({tuple(shown) for _, shown in asked}) > 6


@pytest.mark.parametrize("count", [120, pytest.param(500, marks=pytest.mark.slow)])
def test_text_alone_tells_nothing_on_real_scenes(count):
    """Look-up, times masked, within 4 standard deviations of chance in every task."""

    def named(split, kind, count):
        for seed in range(count):
            scene = world.make_scene(split, kind, seed)
            yield clip(kind, seed, split, [ask(q.task, q.text, q.answer, q.options) for q in scene.questions])

    kinds = [kind for kind, tasks in world.TASKS.items() if tasks]
    train = [c for kind in kinds for c in named("train", kind, count)]
    test = [c for kind in kinds for c in named("test", kind, count // 2)]
    chance = {}
    for c in test:
        for qa, shown in pick_questions(c):
            chance.setdefault(evaluation.task_name(c, qa), []).append(1 / len(shown))
    for task, accuracy in look_up(train, test).items():
        p = 1 / 24 if task == "open" else np.mean(chance[task])
        assert abs(accuracy - p) < 4 * (p * (1 - p) / (count // 2)) ** 0.5 + (0.05 if task == "open" else 0), (
            task,
            accuracy,
            p,
        )


def test_an_evaluation_is_of_these_clips_in_their_order_and_leaves_the_model_as_it_was(setup, monkeypatch):
    model, clips = setup
    clips = [c for c in clips if c.kind in ("short", "parade")][1:5]  # two of each
    seen, collate = [], evaluation.collate
    score = lambda clip, video: seen.append(clip) or np.full((4, 9), 0.5, np.float32)
    monkeypatch.setattr(
        evaluation,
        "collate",
        lambda v, b, scores=None, t=None, **o: (
            seen.append(scores is None) or collate(v, b, scores, t or o["tokenizer"])
        ),
    )
    model.train()
    result = evaluate(model, clips, Reader(4, 48), 0.5, batch_size=3, generate=False, annotate=score)
    assert model.training and not model.eval().training
    encoded, encode = [], model.encode_video
    monkeypatch.setattr(model, "encode_video", lambda *of: encoded.append(of) or encode(*of))
    evaluate(model, clips[:1], Reader(4, 48), 0.5)
    assert not model.training and len(encoded) == 1  # one selection answers both scorings
    assert seen[:6] == [*clips[:3], False, True, clips[3]]  # options are scored, then what is generated goes without
    assert result.correct["choice"]["speed"][-1][0] == 1 and {n for n, _ in result.correct["choice"]["open"]} == {2, 3}
    assert result.correct["generated"].keys() == {"open"} and result.chance["open"] == [0, 0]
    assert set(result.chance["speed"]) <= {1 / 2, 1 / 3, 1 / 4} and 0 < result.rows[1] <= result.rows[0]


def test_an_error_leaves_the_model_in_training(setup, monkeypatch):
    model, clips = setup
    monkeypatch.setattr(evaluation, "collate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model.train(), clips[:1], Reader(4, 48), 0.5)
    assert model.training


def test_the_world_is_evaluated_from_its_folder_and_nothing_else(tmp_path, monkeypatch):
    """An empty folder will be filled; a folder of other things is a typing error, and so is none, but for "data"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "held_out", lambda *of: of)
    monkeypatch.setattr(evaluation, "index_file", lambda *of: of)
    train = dict(train_clips=dict(short=5, brief=3, watch=0), image_size=48, data="learned.jsonl")
    asked = lambda data, train=train, clips=7, split="val", panels=None: evaluation.clips_to_judge(
        Namespace(data=data, clips=clips, split=split, panels=panels), train, 7
    )
    counts = dict(short=5, watch=0, parade=0, image=0, brief=3, glance=0)
    expected = lambda data, size: ((data, size, 7, "val", ["short", "brief"], 2), (data, "train", counts, size, 2))
    assert asked("data") == expected("data", 48)
    for name in ("empty", "world", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()
    (tmp_path / "world" / "world-v6").mkdir()
    (tmp_path / "world" / "more").touch()
    (tmp_path / "other" / "more").touch()
    assert asked("empty", {**train, "video_size": 64}) == expected("empty", 64) and asked("world") == expected(
        "world", 48
    )
    for name in ("other", "none"):
        with pytest.raises(ValueError, match=f"--data {name}: give a folder of the toy world's clips, an empty one"):
            asked(name)
    monkeypatch.setattr(evaluation, "load_clips", lambda data, judged: (data, judged))
    assert asked("a.jsonl", clips=None, split="test") == (("a.jsonl", True), Path("learned.jsonl"))
    for clips, split in ((None, "val"), (200, "test")):
        with pytest.raises(ValueError, match="--clips, --split and --panels are for the toy world"):
            asked("a.jsonl", clips=clips, split=split)


def test_what_is_printed_and_written_of_an_evaluation(tmp_path, monkeypatch, capsys):
    train = dict(
        k=0.5, blind=False, max_frames=4, fps=1.5, seed=6, train_clips={}, image_size=48, data=""
    )  # an old one, which does not name its scorer
    model = SimpleNamespace(config=SimpleNamespace(scored_by="stts", spread=0, vit=SimpleNamespace(image_size=32)))
    monkeypatch.setattr(
        evaluation.checkpoint, "load_trained", lambda *of: (model, dict(step=9, train_config=train), of)
    )
    numbers = []
    monkeypatch.setattr(evaluation, "clips_to_judge", lambda *of: numbers.append(of[2]) or ("ab", tmp_path / "none"))
    monkeypatch.setattr(evaluation, "fingerprint", lambda clips: f"of {clips}")
    judged = []
    monkeypatch.setattr(evaluation, "judge", lambda *of: judged.append(of) or ("a table", dict(short=0.5)))

    def told(**changes):
        usual = dict(checkpoint="a.pt", data="data", clips=3, split="val", scorer=None, k=None, max_frames=None, seed=5,
                     lenient=False, json=None, why=None)  # fmt: skip
        return evaluation.run(Namespace(**{**usual, **changes}), "device"), capsys.readouterr().out

    summary, said = told(json=tmp_path / "a.json")
    assert said.splitlines() == [
        "a.pt (step 9, seed 6), scorer stts (trained: stts), k = 0.5, up to 4 frames",
        "val set of ab: 3 clips of each kind, seed of this evaluation 5",
        "a table",
    ]
    expected = dict(checkpoint="a.pt", step=9, scorer="stts", k=0.5, max_frames=4, seed=5, lenient=False, split="val")
    assert summary == {
        **expected,
        "fingerprint": "of ab",
        "torch": torch.__version__,
        "train_config": train,
        "short": 0.5,
    }
    assert json.loads((tmp_path / "a.json").read_text()) == summary
    (given, clips, reader, *rest) = judged.pop()
    assert given is model and rest == [0.5, (), False, ("a.pt", "device", None), False, None]
    assert (clips, reader.max_frames, reader.size, reader.fps) == ("ab", 4, 32, 1.5)
    summary, said = told(k=0.8, max_frames=31, scorer="cosine", lenient=True)
    assert "note: at k = 0.8 and 31 frames" in said and "scorer cosine (trained: stts), k = 0.8" in said
    assert ", lenient" in said and summary["lenient"] and summary["scorer"] == "cosine" and judged[0][3] == 0.8
    assert "note:" not in told(k=0.8, max_frames=32)[1] and "note:" not in told(k=0.7)[1]
    model.config.spread = 0.25
    assert "(trained: stts), spread 0.25, k = 0.0" in told(k=0.0)[1]
    assert "200 clips of each kind" in told(clips=None)[1]
    train["test_clips"] = 24  # as in training, if nobody says otherwise
    assert "24 clips of each kind" in told(clips=None)[1] and numbers[0] == 3 and numbers[-2:] == [200, 24]
    for wrong in (dict(clips=0), dict(max_frames=0)):
        with pytest.raises(ValueError, match="give at least 1"):
            told(**wrong)
    (tmp_path / "none").touch()
    monkeypatch.setattr(evaluation, "load_clips", lambda _: "learned")
    train |= dict(blind=True)
    assert "), blind, up to 1 frames" in told(max_frames=1, clips=1)[1] and judged[-1][4:6] == ("learned", True)
    for wrong in (dict(k=0.0), dict(scorer="cosine")):
        with pytest.raises(ValueError, match="was trained blind"):
            told(**wrong)


def test_every_flag_of_the_command_and_what_it_is_without(monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "run", lambda args, device: asked.append(vars(args)))
    evaluation.main([])
    rest = dict(
        k=None,
        max_frames=None,
        scorer=None,
        clips=None,
        split="test",
        data=None,
        seed=0,
        lenient=False,
        json=None,
        panels=None,
        why=None,
    )
    assert asked.pop() == dict(checkpoint="runs/cpu/checkpoint.pt", **rest)
    flags = "a.pt --k 0.25 --max-frames 3 --scorer cosine --clips 4 --split val --data d --seed 5 --lenient --json j"
    flags += " --panels 1 --why b.pt"
    evaluation.main(flags.split())
    rest = dict(
        k=0.25,
        max_frames=3,
        scorer="cosine",
        clips=4,
        split="val",
        data="d",
        seed=5,
        lenient=True,
        json="j",
        panels=1,
        why="b.pt",
    )
    assert asked.pop() == dict(checkpoint="a.pt", **rest)
    with pytest.raises(SystemExit):
        evaluation.main(["--len"])  # no abbreviations


def test_the_command_refuses_clearly(tmp_path, capsys):
    for arguments, message in (
        (["--k", "50"], "did you mean 0.5"),
        (["--split", "train"], "invalid choice"),
        *((["--panels", panels], "invalid choice") for panels in ("7", "-1")),
        (["--frames", "3"], "unrecognized arguments"),
    ):
        with pytest.raises(SystemExit) as caught:
            evaluation.main(arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"no checkpoint at .*none.pt: `python -m stts_mini.train` makes one"):
        evaluation.main([str(tmp_path / "none.pt")])
    with pytest.raises(SystemExit, match=r"is a folder: give .*checkpoint.pt"):
        evaluation.main([str(tmp_path)])
    with pytest.raises(SystemExit, match=r"--seed 9{20}: give a number from"):
        evaluation.main([str(tmp_path), "--seed", "9" * 20])
