"""Clips of one's own: every bad line is named, what is broken is skipped and listed, pictures lose nothing."""

import gc
import json
import os
import signal
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stts_mini import eval as evaluation
from stts_mini import train as training
from stts_mini.data.batches import TOKENIZER, Reader, Sampler, collate
from stts_mini.data.clips import LOG_COLUMNS, OWN, QA, Clip, fingerprint, load_clips, parse_clip, prepare
from stts_mini.data.video import Video, VideoError, read_video, write_video
from stts_mini.eval import evaluate, pick_questions
from stts_mini.lab import check
from stts_mini.train import build_model, train
from stts_mini.training import checkpoint
from stts_mini.training.health import Health
from stts_mini.training.logging import Log
from stts_mini.training.step import counts_of, forward_backward, wrap
from tests.own import own_line, write_own_clips
from tests.tiny import flags_of, tiny

CPU = torch.device("cpu")
ASKED = [{"question": "who ?", "answer": "she"}]
OF_TWO = {**ASKED[0], "options": ["she", "he"]}
TRANSLATED = dict(kind="brief", split="test", seed=7, qa=[dict(question="wohin ?", answer="links", task="direction")])


def row_of(video="a", **rest):
    return {"video": video, "qa": ASKED, **rest}


def picture(path, colour, size=(40, 60)):
    frame = np.broadcast_to(np.array(colour, np.uint8), (*size, 3))
    av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").save(str(path))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Five videos (one cut out of a longer one), one picture, three pictures; and two lines that cannot be read."""
    folder = tmp_path_factory.mktemp("own") / "clips"
    index = write_own_clips(folder, 4)
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    lines.append({**own_line(folder, 4), "start": 1.0, "end": 2.5})
    for name, colour in (("red", (220, 0, 0)), ("green", (0, 220, 0)), ("blue", (0, 0, 220))):
        picture(folder / f"{name}.png", colour)
    which = dict(question="which is red ?", answer="1", options=["1", "2", "3"])
    lines.append({"image": "red.png", "qa": ASKED})
    lines.append({"images": ["red.png", "green.png", "blue.png"], "qa": [which]})
    lines.insert(2, {"video": "missing.mp4", "qa": ASKED})
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(200))
    lines.append({"video": "broken.mp4", "qa": ASKED})
    index.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return index


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[]", "a list: give an object in curly brackets"),
        ({"qa": ASKED}, '0 of "video", "image" and "images": give one'),
        ({"video": "a", "image": "b", "qa": ASKED}, "2 of"),
        ({"video": 3, "qa": ASKED}, "give a path"),
        ({"images": [], "qa": ASKED}, "give a path or more, in square brackets"),
        ({"images": "a.png", "qa": ASKED}, "give a path or more, in square brackets"),
        ({"video": "a", "qa": ASKED, "strat": 2}, "unknown: strat. A clip has video, image, images, qa, start, end"),
        ({"video": "a", "qa": ASKED, "start": "2"}, "start = '2': give seconds, 0 or more"),
        ({"video": "a", "qa": ASKED, "end": -1}, "end = -1: give seconds, 0 or more"),
        ({"video": "a", "qa": ASKED, "start": 3, "end": 2}, "start 3.0 comes after end 2.0"),
        ({"image": "a", "qa": ASKED, "start": 3}, "start and end are for videos"),
        ({"video": "a"}, "no qa: give a list"),
        ({"video": "a", "qa": []}, "no qa: give a list"),
        ({"video": "a", "qa": ["who ?"]}, "give an object with question and answer"),
        ({"video": "a", "qa": [{"question": "who ?"}]}, "a question without answer"),
        ({"video": "a", "qa": [{"question": "who ?", "answer": 5}]}, "answer = 5: give a text"),
        ({"video": "a", "qa": [{"question": " ", "answer": "b"}]}, "a question without question"),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["he"]}]}, "the answer 'she' is not among its options"),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["she", "she"]}]}, "an option comes twice"),
        ({"video": "a", "qa": [{**ASKED[0], "options": "she"}]}, "give a list of texts"),
        ({"video": "a", "qa": [{**ASKED[0], "optoins": ["she"]}]}, "unknown in a question: optoins"),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["she ", "she"]}]}, "an option comes twice"),
        ({"video": "a", "qa": ASKED, "kind": "movie"}, "kind 'movie', split 'own', seed 1 name no scene"),
        ({"video": "a", "qa": ASKED, "seed": "x"}, "name no scene of the world: leave them out"),
        ({"video": "a", "qa": ASKED, "start": 10**400}, "give seconds, 0 or more"),
        *(({"video": "a", "qa": [{**ASKED[0], "options": o}]}, "give a list of texts") for o in ({}, 0, False, "")),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["she", "é", "e\u0301"]}]}, "an option comes twice"),
        *(({"video": "a", "qa": [{**OF_TWO, "task": t}]}, "give another name") for t in (["x"], None, 3, "", "a\nb")),
        ({"video": "a", "qa": [{**OF_TWO, "task": "free"}]}, "task = 'free': give another name"),  # has options
        ({"video": "a", "qa": [{**OF_TWO, "task": "step"}]}, "task = step: log.csv has a column of that name"),
        ('{"video": "a", "start": ' + "1" * 5000 + "}", "a number of 5000 digits: give a smaller one"),
        ("\ufeff" + json.dumps(row_of()), "a byte order mark (U+FEFF) begins this line: remove it"),
        (row_of("test-brief-000007.mp4", **TRANSLATED), "the direction 'links' in a brief clip: give one of left"),
        *((row_of(seed=seed), "name no scene") for seed in (-1, True, 1.0, None)),
        *((row_of(kind=kind), "name no scene") for kind in ("short", None, [], {})),
        (row_of(kind="short", split="test", seed=7), "are for the whole of the world's test-short-000007.mp4"),
        (row_of("test-short-000007.mp4", kind="short", split="test", seed=7, end=1), "are for the whole of"),
        (row_of("test-short-000007.mp4", kind="short", split="test", seed=7), "no question of the tasks that short"),
        (row_of(split=["test"]), "name no scene"),
        ('{"video": "a", "video": "b", "qa": []}', "a name comes twice among qa, video, video"),
        ('{"video": "a", "qa": [{"question": "a", "question": "b", "answer": "c"}]}', "a name comes twice"),
        ("[" * 100_000, "brackets within brackets without end"),
        *(({"video": "a", "qa": [{**ASKED[0], name: "a \ud800"}]}, r"near 'a \ud800'") for name in ASKED[0]),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["she", "\udce9"]}]}, r"no UTF-8 near '\udce9'"),
        ({"video": "a", "qa": ASKED, "a\n\x1b\ud800": 1}, r"unknown: a\n\x1b\ud800. A clip has"),
        ({"video": "a", "qa": [{**ASKED[0], "options": ["x" * 9**3] * 9**3}]}, "the answer 'she' is not among"),
    ],
)
def test_a_bad_line_says_what_is_wrong(line, message, tmp_path):
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(ValueError) as caught:
        parse_clip(text, 1, tmp_path)
    assert message in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 1000
    (tmp_path / "a.jsonl").write_text("\n\n" + text + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl, line 3 is not a clip: .*lab.check .* lists all such lines"):
        load_clips(tmp_path / "a.jsonl")


def test_a_task_may_have_no_name_of_the_log():
    assert Log.NAMES == LOG_COLUMNS and LOG_COLUMNS[-len(Health._fields) :] == Health._fields


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no clip"):
        load_clips(tmp_path / "a.jsonl")


def test_the_check_says_which_clips_are_too_long_for_short_stamps(tmp_path):
    write_video(tmp_path / "long.mp4", np.zeros((131, 16, 16, 3), np.uint8), 1)
    ends = [{}, dict(start=1, end=129), dict(start=1, end=130)]
    lines = (json.dumps(dict(video="long.mp4", qa=[dict(question="a", answer="b")], **end)) for end in ends)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    count, bad, notes = check.check(tmp_path / "a.jsonl", quick=True)
    assert (count, bad) == (3, []) and [note[:17] for note in notes] == ["line 1: 130.0 s. ", "line 3: 129.0 s. "]


def test_the_check_notes_long_texts_and_many_pictures(tmp_path):
    picture(tmp_path / "a.png", (0, 0, 0), (16, 16))
    asked = [[dict(question="red " * n, answer="red")] for n in (999, 1000)]
    rows = [dict(images=["a.png"] * n, qa=qa) for n, qa in zip((64, 65), asked, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    count, bad, (text, pictures) = check.check(tmp_path / "a.jsonl")
    assert (count, bad) == (2, []) and "line 2: a question and its answer take the small model 1001" in text
    assert pictures.startswith("line 2: 65 pictures")


@pytest.mark.parametrize("full", [False, True])
def test_the_check_ends_quietly_if_nobody_reads_on_and_in_a_line_if_the_disk_is_full(full, tmp_path, monkeypatch):
    picture(tmp_path / "a.png", (0, 0, 0))
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(image="a.png", qa=ASKED)))
    where = "/dev/full"
    if not full:
        reader, where = os.pipe()
        os.close(reader)
    with open(where, "w") as out:  # at its end it is flushed again
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit, match="No space left on device") if full else nullcontext():
            check.main([str(tmp_path / "a.jsonl")])


def test_the_check_lists_every_bad_line_and_goes_on(mixed, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        check.main([str(mixed)])
    said = capsys.readouterr().out.splitlines()
    assert caught.value.code == 1 and len(said) == 3 and said[-1].endswith(": 9 lines, 2 bad")
    assert said[0].startswith("line 3: no such file") and said[1].startswith("line 9: ") and "broken.mp4" in said[1]
    with pytest.raises(SystemExit):
        check.main([str(mixed), "--quick"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(": 9 lines, 2 bad")
    good = tmp_path / "good.jsonl"
    lines = mixed.read_text().splitlines()
    good.write_text("\n".join(json.dumps(absolute(json.loads(line), mixed.parent)) for line in lines[:2]))
    check.main([str(good)])
    assert capsys.readouterr().out.endswith(": 2 lines, 0 bad\n")
    with pytest.raises(SystemExit, match=r"nowhere.jsonl"):
        check.main([str(tmp_path / "nowhere.jsonl")])


def absolute(row, folder):
    return {**row, "video": str(folder / row["video"])}


def test_a_part_of_a_video_is_what_is_shown_there(mixed):
    path = mixed.parent / "4.mp4"  # 10 frames a second
    whole, part = read_video(path, 99, 10.0), read_video(path, 99, 10.0, start=1.0, end=2.5)
    assert part.times == pytest.approx([i / 10 for i in range(16)]) and part.duration == 1.5
    assert np.array_equal(part.frames, whole.frames[10:26])
    few = read_video(path, 3, 10.0, start=1.05, end=99)
    assert np.array_equal(few.frames[0], whole.frames[10]) and np.array_equal(few.frames[-1], whole.frames[-1])
    assert few.times[0] == 0 and few.duration == pytest.approx(whole.duration - 1.05)
    with pytest.raises(VideoError, match=r"ends at .* s: it has nothing at start = 50"):
        read_video(path, 3, start=50)
    with pytest.raises(ValueError, match="0 ≤ start ≤ end"):
        read_video(path, 3, start=2, end=1)


def test_what_is_lost_of_a_clip_is_told_in_one_line(tmp_path, capsys):
    """By the check, by training and by judging; `--quick` looks at both ends only."""
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 255, (60, 48, 48, 3), np.uint8), fps=10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    raw = bytearray((tmp_path / "a.mp4").read_bytes())
    for at, size in packets[20:50]:
        raw[at + 4 : at + size] = bytes(size - 4)
    (tmp_path / "a.mp4").write_bytes(raw)
    index = tmp_path / "a.jsonl"
    index.write_text(json.dumps({"video": "a.mp4", "qa": ASKED}))
    lost = read_video(tmp_path / "a.mp4", 2, thorough=True).skipped
    note = f"line 1: {lost} packets or frames are broken or missing in {tmp_path / 'a.mp4'}"
    assert check.check(index) == (1, [], [note]) and lost >= 30
    reader = Reader(4, 48)
    reader(load_clips(index)[0])
    assert reader.skipped == {(tmp_path / "a.mp4", None, None): lost} and not reader.broken
    line = f"broken or missing, and left out: {lost} packets or frames of 1 clips, {lost} of them of "
    config = tiny(tmp_path, data=str(index), val=str(index), steps=1, warmup=0, batch_size=1)
    model = train(config, False, CPU)
    assert capsys.readouterr().out.count(f"{line}{tmp_path / 'a.mp4'}") == 1
    training.finish(config, model, CPU)
    assert capsys.readouterr().out.count(line) == 1


def test_what_is_lost_of_pictures_is_summed(tmp_path):
    for name in ("a.gif", "b.gif"):
        with av.open(str(tmp_path / name), "w", format="gif") as container:
            stream = container.add_stream("gif", rate=1)
            stream.height, stream.width, stream.pix_fmt = 48, 48, "rgb8"
            noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            container.mux(stream.encode())
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-500])
    (tmp_path / "a.jsonl").write_text(json.dumps({"images": ["a.gif", "b.gif"], "qa": ASKED}))
    (clip,) = load_clips(tmp_path / "a.jsonl")
    assert Reader(4, 48)(clip).skipped == 2
    assert check.check(tmp_path / "a.jsonl")[2][0].startswith("line 1: 2 packets or frames are broken or missing in ")


def test_broken_clips_are_replaced_counted_and_listed(mixed, tmp_path, capsys):
    clips = load_clips(mixed)
    reader = Reader(4, 48)
    sampler = Sampler(clips, reader, 3, 2, 0)
    for step in range(6):
        batch = sampler(step)
        assert len(batch.num_frames) == 3 and all(batch.branches)
    assert sorted(path.name for path, *_ in reader.broken) == ["broken.mp4", "missing.mp4"]
    again = Sampler(clips, Reader(4, 48), 3, 2, 0)(5)
    assert torch.equal(batch.frames, again.frames) and batch.branches == again.branches  # by the same lot
    config = tiny(tmp_path, data=str(mixed), val=str(mixed), steps=6, warmup=1)
    model = train(config, False, CPU)
    said = capsys.readouterr().out
    assert "note: 9 clips are in --data and in --val: the result is partly of what was learned" in said
    note = said.index("note: clips that cannot be read are left out: 2. The first: ")
    assert note < said.index("right in training") < said.index("could not be read, and left out: 2")
    assert "missing.mp4" in said
    training.finish(config, model, CPU)
    said = capsys.readouterr().out
    assert (
        "question" in said
        and "free" in said
        and said.count("model says:") == 3
        and "could not be read, and left out: 2" in said
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["choice"]) == {"question"} and (tmp_path / "run" / "pruned.png").exists()
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
    only = [c for c in clips if c.video.name == "missing.mp4"]
    with pytest.raises(VideoError, match="none of the 1 training clips can be read"):
        Sampler(only, Reader(4, 48), 2, 2, 0)(0)


def test_the_commands_take_clips_of_ones_own(mixed, tmp_path, capsys):
    config = tiny(tmp_path, data=str(mixed), steps=3, warmup=1)
    train(config, False, CPU)
    path = tmp_path / "run" / "checkpoint.pt"
    evaluation.main([str(path), "--data", str(mixed), "--json", str(tmp_path / "e.json")])
    said = capsys.readouterr().out
    assert "9 clips" in said and "missing.mp4" in said
    assert json.loads((tmp_path / "e.json").read_text())["chance"]["question"] < 1
    assert training.finish(config, None, CPU) == {} and "no --val" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"goes with clips of your own: give --data mine.jsonl"):
        tiny(tmp_path, val=str(mixed))


def test_every_question_of_ones_own_is_asked_and_judged(mixed):
    clip = load_clips(mixed)[0]
    asked = pick_questions(clip)
    assert [qa for qa, _ in asked] == list(clip.qa) and [qa.task for qa, _ in asked] == ["question", "free"]
    model = build_model(tiny(mixed.parent), CPU)
    model.generate = lambda batch, *_, **__: [[TOKENIZER.encode("red") for _ in video] for video in batch.branches]
    result = evaluate(model, [clip], Reader(4, 48), 0.5)
    assert result.accuracy("free") == 1.0 and result.chance["free"] == [0] and not result.evidence


def test_pictures_and_videos_share_a_batch_and_pictures_lose_nothing(mixed):
    clips = [c for c in load_clips(mixed) if c.video.name in ("0.mp4", "red.png")]
    reader = Reader(4, 48)
    videos = [reader(c) for c in clips]
    assert [len(v.frames) for v in videos] == [4, 1, 3] and [v.still for v in videos] == [False, False, True]
    assert videos[2].stamps == ["1", "2", "3"] and videos[1].stamps == ["0.0"]
    for video, colour in zip(videos[2].frames, ((220, 0, 0), (0, 220, 0), (0, 0, 220)), strict=True):
        assert abs(video.astype(int) - colour).max() < 8
    branches = [[(TOKENIZER.prompt("who ?"), TOKENIZER.encode("red"))]] * 3
    batch = collate(videos, branches)
    assert batch.still.tolist() == [False, False, True]
    assert collate(videos[:2], branches[:2]).still is None
    model = build_model(tiny(mixed.parent), CPU).eval()
    mixed_up, alone = model.encode(batch, 0.5), model.encode(collate(videos[2:], branches[2:]), 0.8)
    assert mixed_up.kept.sum(1).tolist() == [18, 9, 27] and alone.kept.tolist() == [[9, 9, 9]]
    assert alone.sim_loss == 0.0 and alone.scores is None
    unpruned = model.encode(collate(videos[2:], branches[2:]), 0.0)
    torch.testing.assert_close(mixed_up.tokens[-27:], unpruned.tokens, rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.tokens, unpruned.tokens)
    output = model(batch, 0.5)
    assert output.task_loss.isfinite() and output.sim_loss > 0
    as_video = model.encode_video(batch.frames, batch.num_frames, 0.5)
    assert as_video.kept.sum(1).tolist() == [18, 9, 14]  # three frames that are a video lose floor(13.5) cells


def test_pictures_weigh_nothing_in_the_auxiliary_loss(mixed):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 48, 48, 3), np.uint8)
    still, film = (Video(x, [0.0, 0.5, 1.0], 1.0, still=s) for x, s in zip(pixels, (True, False), strict=True))
    branch = [(TOKENIZER.prompt("who ?"), TOKENIZER.encode("red"))]
    model = build_model(tiny(mixed.parent), CPU).eval()
    both, alone = model(collate([still, film], [branch] * 2), 0.5), model(collate([film], [branch]), 0.5)
    torch.testing.assert_close(both.sim_loss, alone.sim_loss)
    assert counts_of(collate([still, film], [branch] * 2), 0.5, 9) == (2, 1)


def test_the_fingerprint_sees_parts_and_pictures():
    clip = Clip("a.mp4", OWN, OWN, 1, (QA("free", "who ?", "she"),))
    from dataclasses import replace

    clip = replace(clip, video=Path("a.mp4"))
    others = [replace(clip, start=1.0), replace(clip, video=Path("b.mp4")), replace(clip, images=(Path("c.png"),))]
    assert len({fingerprint([c]) for c in [clip, *others]}) == 4


def test_the_fingerprint_sees_which_folder_a_file_is_in():
    def of(*paths, root="here", images=False):
        files = [(Path(root, path),) for path in paths]
        own = [Clip(f[0], OWN, OWN, i, (QA("free", f"{i} ?", "a"),), images=f * images) for i, f in enumerate(files)]
        return fingerprint(own)

    for images in (False, True):
        lists = [("s1/v", "s2/v"), ("s2/v", "s1/v"), ("s1/v", "s1/w"), ("a/s1/v", "b/s1/v"), ("b/s1/v", "a/s1/v")]
        assert len({of(*paths, images=images) for paths in lists}) == 5
    assert of("s1/v", "s2/v") == of("s1/v", "s2/v", root="/elsewhere/now") == of("s1/v", "../here/s2/v")


def test_the_worlds_own_index_is_in_that_format(tmp_path, capsys):
    """Written by `prepare`, read as anybody's clips: its kinds and tasks stay."""
    from stts_mini.toy.world import SHORT_TASKS

    index = prepare(tmp_path / "data", "train", {"short": 3, "image": 2}, 48)
    config = tiny(tmp_path, data=str(index), val=str(index), steps=3, warmup=1)
    training.finish(config, train(config, False, CPU), CPU)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["choice"]) == {*SHORT_TASKS, "image/attribute", "image/count"}
    assert "short (mean)" in capsys.readouterr().out


def test_recomputing_changes_no_gradient(mixed, tmp_path):
    """Activation checkpointing: the same values, the same gradients, bit for bit."""
    batch = Sampler(load_clips(mixed), Reader(4, 48), 4, 2, 0)(0)
    gradients = []
    for recompute in (False, True):
        config = tiny(tmp_path, recompute=recompute)
        model = build_model(config, CPU).train()
        run = wrap(model, config, CPU)
        calls = []
        model.vit.blocks[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        forward_backward(model, batch, config, CPU, 0.5, None, run)
        assert len(calls) == 1 + recompute
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_lines_end_where_json_lines_end(tmp_path):
    """Not at U+2028, which JSON strings may hold; and a mark of byte order is no text."""
    line = json.dumps({"video": "a.mp4", "qa": [{"question": "a\u2028b\u0085c ?", "answer": "d"}]}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\n{line}\n".encode())
    assert [c.seed for c in load_clips(tmp_path / "a.jsonl")] == [1, 2]


def test_odd_file_names_are_bad_clips_and_nothing_worse(tmp_path):
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(VideoError, match="cannot be looked at"):
            read_video(tmp_path / name, 2)


def test_long_answers_and_answers_with_spaces_can_be_right(tmp_path):
    text = "the man opens the door and leaves the house"
    line = {"video": "0.mp4", "qa": [{"question": " what happens ?", "answer": f" {text} "}]}
    own_line(tmp_path, 0)
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    (clip,) = load_clips(tmp_path / "a.jsonl")
    assert clip.qa == (QA("free", "what happens ?", text),)
    model = build_model(tiny(tmp_path), CPU)
    says = TOKENIZER.encode(text)
    model.generate = lambda batch, k, longest, **_: [[says[:longest]]]
    assert len(says) > 16 and evaluate(model, [clip], Reader(4, 48), 0.5).accuracy("free") == 1.0


def test_a_broken_clip_is_told_each_time_and_holds_on_to_nothing(mixed):
    """A raised error keeps the frames of its callers alive: it must be a new one each time."""
    clip = next(c for c in load_clips(mixed) if c.video.name == "broken.mp4")
    reader, errors = Reader(4, 48), []
    for _ in range(3):
        with pytest.raises(VideoError) as caught:
            reader(clip)
        errors.append(caught.value)
    assert len({id(e) for e in errors}) == 3 and len({str(e) for e in errors}) == 1
    assert all(isinstance(reason, str) for reason in reader.broken.values())


def test_evaluation_holds_no_more_videos_than_a_batch(mixed, tmp_path):
    clips = [load_clips(mixed)[0]] * 12
    reader, alive, most = Reader(4, 48, cache_gb=0.0), [], []

    class Counting:
        broken, skipped = reader.broken, reader.skipped

        def __call__(self, clip):
            video = reader(clip)
            alive.append(weakref.ref(video))
            gc.collect()
            most.append(sum(ref() is not None for ref in alive))
            return video

    gc.freeze()  # what is there already need not be looked at
    evaluate(build_model(tiny(tmp_path), CPU), clips, Counting(), 0.5, batch_size=2, generate=False)
    gc.unfreeze()
    assert len(most) == 12 and max(most) <= 5  # the batch before, this one, and the one being read


def test_shards_draw_alike_even_beside_a_broken_clip(mixed):
    clips = load_clips(mixed)
    samplers = [Sampler(clips, Reader(4, 48), 4, 2, 0, shard=s) for s in ((0, 1), (0, 2), (1, 2))]
    for step in range(12):
        whole, *shards = (sampler(step) for sampler in samplers)
        for i, shard in enumerate(shards):
            assert shard.branches == whole.branches[i::2]
    assert [len(sampler.reader.broken) for sampler in samplers] == [2, 2, 2]


def test_what_is_wrong_is_said_before_the_training(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "forward_backward", None)  # no step is made
    with pytest.raises(OSError, match=r"nowhere.jsonl"):
        train(tiny(tmp_path, data=str(mixed), val=str(tmp_path / "nowhere.jsonl")), False, CPU)
    wrong = tmp_path / "wrong.jsonl"  # its paths are
    line = json.dumps(dict(video="nowhere.mp4", qa=[dict(question="what ?", answer="a")]))
    wrong.write_text(f"{line}\n{line.replace('nowhere', 'neither')}\n")
    with pytest.raises(ValueError, match=r"none of 2 clips of .*wrong.jsonl can be read: no such file: .*nowhere.mp4"):
        train(tiny(tmp_path, data=str(mixed), val=str(wrong)), False, CPU)
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"--data .*films: give a folder of the toy world's clips, an empty one, or"):
        train(tiny(tmp_path, data=str(films)), False, CPU)
    assert os.listdir(films) == ["a.mp4"]
    broken = next(c for c in load_clips(mixed) if c.video.name == "broken.mp4")
    with pytest.raises(VideoError, match=r"none of 1 clips can be read: .*broken.mp4"):
        evaluate(build_model(tiny(tmp_path), CPU), [broken], Reader(4, 48), 0.5)


def test_a_run_may_start_from_the_checkpoint_that_it_moves_aside(mixed, tmp_path):
    config = tiny(tmp_path, data=str(mixed), steps=3, warmup=1)
    train(config, False, CPU)
    init = str(tmp_path / "run" / "checkpoint.pt")
    train(tiny(tmp_path, data=str(mixed), steps=3, warmup=1, init=init), False, CPU)
    assert (tmp_path / "run.1" / "checkpoint.pt").exists() and (tmp_path / "run" / "checkpoint.pt").exists()


def test_resuming_with_other_clips_is_refused_but_not_with_other_settings_of_the_world(mixed, tmp_path):
    train(tiny(tmp_path, data=str(mixed), steps=3, warmup=1, panels=3), False, CPU)
    train(tiny(tmp_path, data=str(mixed), steps=3, warmup=1, stages={}), True, CPU)
    other = write_own_clips(tmp_path / "clips", 2)
    with pytest.raises(ValueError, match=r"the training clips were .*, are "):
        train(tiny(tmp_path, data=str(other), steps=3, warmup=1), True, CPU)


def test_lines_that_are_no_utf8_are_bad_lines_and_the_others_are_read(mixed, tmp_path):
    good = json.dumps(absolute(json.loads(mixed.read_text().splitlines()[0]), mixed.parent)).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + good.replace(b"say red", b"caf\xe9 ?") + b"\nnot JSON\r\n" + good)
    count, bad, _ = check.check(tmp_path / "a.jsonl")
    assert count == 4 and len(bad) == 2 and bad[0].startswith("line 2: no UTF-8 near") and r"caf\udce9" in bad[0]
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is not a clip: no UTF-8 near"):
        load_clips(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(good.replace(b"0.mp4", b"caf\xe9.mp4"))
    with pytest.raises(ValueError, match=r"line 1 is not a clip: no UTF-8 near"):
        load_clips(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(good.decode().encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"a.jsonl is no UTF-8 text: save it as UTF-8"):
        load_clips(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a.json: .* ends in .jsonl"):
        load_clips(tmp_path / "a.json")


def test_an_index_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").mkdir()
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for a pipe"))
    signal.alarm(20)
    try:
        for name in "ab":
            index = str(tmp_path / f"{name}.jsonl")
            for command, words in ((check, [index]), (training, ["--data", index, "--out", str(tmp_path / "run")])):
                with pytest.raises(SystemExit, match=rf"{name}.jsonl is no regular file: give a file of JSON lines"):
                    command.main(words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_names_of_any_bytes_are_read_and_printed_in_one_line(mixed, tmp_path, capsys):
    name = b"no UTF-8 \xe9, line\nfeed, \x1b[31mred.mp4"
    good, bad = (os.fsdecode(part + name) for part in (b"good", b"bad"))
    (tmp_path / good).write_bytes((mixed.parent / "0.mp4").read_bytes())
    (tmp_path / bad).write_bytes(b"no video" * 50)
    index = tmp_path / os.fsdecode(name.replace(b"mp4", b"jsonl"))
    index.write_text("\n".join(json.dumps(row_of(video)) for video in (good, bad)))
    out = tmp_path / os.fsdecode(name)
    flags = flags_of(stages={}, steps=1, warmup=0, data=index, val=index, out=out)
    out.mkdir()
    (out / "checkpoint.pt").touch()  # is moved aside
    training.main(flags)
    evaluation.main([str(out / "checkpoint.pt"), "--data", str(index), "--json", str(out / "e.json")])
    with pytest.raises(SystemExit):
        check.main([str(index)])
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable() and repr(bad)[1:-1] in said and (out / "e.json").exists()
    assert [line for line in said.splitlines() if line.startswith(("feed", "[31m"))] == []


def test_what_judges_nothing_is_refused_before_the_training(tmp_path, mixed):
    index = prepare(tmp_path / "data", "train", {"short": 1, "brief": 1}, 48)
    assert [clip.kind for clip in load_clips(index)] == ["short", "brief"]  # to learn from
    with pytest.raises(ValueError, match=r"line 2: a brief clip judges nothing: leave it out"):
        train(tiny(tmp_path, data=str(mixed), val=str(index)), False, CPU)


def test_the_evaluation_refuses_what_it_would_not_use(mixed, tmp_path, monkeypatch):
    """A folder that is not there is no wish for the toy world; flags that change nothing; its own input as output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    (tmp_path / "mine.py").write_text("from stts_mini.scorer import Scorer as Mine\n")
    train(tiny(tmp_path, data=str(mixed), steps=3, warmup=1), False, CPU)
    path, own = str(tmp_path / "run" / "checkpoint.pt"), ["--data", str(mixed)]
    for words, message in (
        (["--data", "typo"], "--data typo: give a folder of the toy world's clips"),
        (["--data", "films"], "--data films: give a folder of the toy world's clips"),
        (["--data", "clips.json"], "ends in .jsonl"),
        ([*own, "--clips", "2"], "--clips, --split and --panels are for the toy world"),
        ([*own, "--split", "val"], "--clips, --split and --panels are for the toy world"),
        ([*own, "--json", str(mixed)], "is also an input"),
        ([*own, "--json", path], "is also an input"),
        (["--data", "other.jsonl", "--json", str(mixed)], "is also an input"),  # for the look-up
        ([*own, "--scorer", "mine.py:Mine", "--json", "mine.py"], "is also an input"),
        ([], "learned from clips of your own: give --data mine.jsonl, clips to judge it by"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluation.main([path, *words])
    assert {*os.listdir(tmp_path)} - {"__pycache__"} == {"films", "mine.py", "run"}
    assert os.listdir(tmp_path / "films") == ["a.mp4"]
    state = checkpoint.load(path)
    torch.save({**state, "train_config": {**state["train_config"], "blind": True}}, path)
    with pytest.raises(SystemExit, match="was trained blind: leave out --k and --scorer"):
        evaluation.main([path, *own, "--k", "0.5"])


def test_the_look_up_is_by_what_the_model_learned_from(mixed, tmp_path, capsys):
    """And not by another file of that name, in another folder."""
    clips, other = load_clips(mixed), tmp_path / "mine.jsonl"
    state = dict(train_config=dict(data=str(mixed)), clips=fingerprint(clips))
    assert evaluation.learned_from(mixed, state) == clips and not capsys.readouterr().out
    assert evaluation.learned_from(tmp_path / "gone.jsonl", state) == () and not capsys.readouterr().out
    for text in (json.dumps(dict(video="a.mp4", qa=[dict(question="q", answer="a")])), "garbage"):
        other.write_text(text)
        assert evaluation.learned_from(other, state) == ()
        assert "mine.jsonl is not what the model learned from, so there is no look-up" in capsys.readouterr().out


def test_a_model_of_the_world_is_judged_by_ones_own_clips(mixed, tmp_path, capsys):
    config = tiny(tmp_path, data=str(tmp_path / "data"), steps=3, warmup=1)
    train(config, False, CPU)
    evaluation.main([str(tmp_path / "run" / "checkpoint.pt"), "--data", str(mixed)])
    assert "9 clips" in capsys.readouterr().out
