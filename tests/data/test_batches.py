"""Clips on disk, batches in memory: pure, resumable, and true to their files."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stts_mini.data import batches
from stts_mini.data import clips as on_disk
from stts_mini.data.batches import TOKENIZER, Reader, Sampler, collate
from stts_mini.data.clips import QA, Clip, fingerprint, load_clips, prepare
from stts_mini.data.tokenizer import ANSWER, OPTION, QUESTION
from stts_mini.data.video import Video, VideoError
from stts_mini.toy.world import make_scene
from tests.tiny import forks

COUNTS = {"short": 6, "watch": 2, "image": 2}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"), "train", COUNTS, 48)


@pytest.fixture(scope="session")
def clips(prepared):
    return load_clips(prepared)


def test_prepare_writes_real_clips_with_their_questions(prepared, clips):
    assert len(clips) == 10 and [c.kind for c in clips[5:8]] == ["short", "watch", "watch"]
    video = Reader(16, 48)(clips[0])
    assert video.frames.shape[0] in (8, 9) and video.times[1] == 0.5
    assert all(len(Reader(16, 48)(c).frames) == (16 if c.kind == "watch" else 1) for c in clips[6:])
    assert all(not name.endswith(".partial") for name in os.listdir(prepared.parent))


def test_prepare_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    made = []
    whole = on_disk.write_video

    def counting(path, *args, **kwargs):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(path.name)
        whole(path, *args, **kwargs)

    monkeypatch.setattr(on_disk, "write_video", counting)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "val", {"image": 5}, 48)
    assert not list(tmp_path.glob("*/*.jsonl"))
    monkeypatch.setattr(on_disk, "write_video", lambda path, *a, **k: (made.append(path.name), whole(path, *a, **k)))
    index = prepare(tmp_path, "val", {"image": 5}, 48)
    assert made == [f"val-image-{i:06d}.mp4" for i in range(5)] and len(load_clips(index)) == 5
    monkeypatch.setattr(on_disk, "write_video", None)  # nothing is written a second time
    assert prepare(tmp_path, "val", {"image": 5}, 48) == index


def test_a_deleted_clip_is_written_anew(tmp_path):
    index = prepare(tmp_path, "val", {"image": 2}, 48)
    clips = load_clips(index)
    before = clips[1].video.read_bytes()
    clips[1].video.unlink()
    assert prepare(tmp_path, "val", {"image": 2}, 48) == index
    assert clips[1].video.read_bytes() == before


def test_each_dial_has_a_folder_and_a_fingerprint_of_its_own(tmp_path):
    indices = [prepare(tmp_path, "val", {"brief": 1}, 48, panels) for panels in (2, 0, 1)]
    assert [index.parent.name for index in indices] == [f"world-v6-48px{end}" for end in ("", "-0panels", "-1panels")]
    clips = [load_clips(index) for index in indices]
    assert len({fingerprint(own) for own in clips}) == 3 and clips[0][0].qa == clips[1][0].qa == clips[2][0].qa
    assert len({own[0].video.read_bytes() for own in clips}) == 3
    assert load_clips(prepare(tmp_path, "val", {"brief": 1}, 48))[0].video == clips[0][0].video


def test_a_bad_line_is_named(prepared, tmp_path):
    lines = prepared.read_text().splitlines()
    for bad in ("{", "[]", json.dumps({"video": "x.mp4"})):
        (tmp_path / "bad.jsonl").write_text("\n".join([lines[0], bad]))
        with pytest.raises(ValueError, match="line 2 is not a clip"):
            load_clips(tmp_path / "bad.jsonl")


def test_fingerprint_sees_every_change(clips):
    assert fingerprint(clips) == fingerprint(list(clips)) != fingerprint(clips[1:])
    one = clips[0]
    other = Clip(one.video, one.kind, one.split, one.seed, one.qa[1:])
    assert fingerprint([one]) != fingerprint([other])
    elsewhere = Clip(one.video.with_name("b.mp4"), one.kind, one.split, one.seed, one.qa)
    assert fingerprint([one]) == fingerprint([elsewhere])  # where it lies does not matter


def test_reader_keeps_what_fits(clips):
    small = Reader(16, 48, cache_gb=1e-9)
    large = Reader(16, 48)
    assert small(clips[0]) is not small(clips[0]) and not small.cache
    assert large(clips[0]) is large(clips[0])
    assert np.array_equal(small(clips[0]).frames, large(clips[0]).frames)


def test_prompt_reads_as_documented():
    ids = TOKENIZER.prompt("what colour is the circle ?", ["red", "blue"])
    red, blue = TOKENIZER.encode("red"), TOKENIZER.encode("blue")
    expected = [QUESTION, *TOKENIZER.encode("what colour is the circle ?"), OPTION, *red, OPTION, *blue, ANSWER]
    assert ids == expected


def test_collate_pads_and_keeps_every_pixel():
    videos = [Video(np.full((n, 4, 6, 3), n, np.uint8), [0.5 * i for i in range(n)], 0.0) for n in (1, 3)]
    videos[1].frames[2, 1, 5] = (7, 8, 9)
    batch = collate(videos, [[], []])
    assert batch.frames.shape == (2, 3, 3, 4, 6) and batch.num_frames.tolist() == [1, 3]
    assert batch.frames[1, 2, :, 1, 5].tolist() == [7, 8, 9] and (batch.frames[0, 1:] == 0).all()
    assert batch.stamps == [[[TOKENIZER.stamp(0)]], [[TOKENIZER.stamp(t)] for t in (0, 0.5, 1.0)]]


def test_a_step_is_a_pure_function_of_seed_and_number(clips):
    fresh = lambda seed=0: Sampler(clips, Reader(16, 48), 4, 6, seed)
    used = fresh()
    for step in (0, 1, 5):
        used(step)
    a, b = used(3), fresh()(3)
    assert torch.equal(a.frames, b.frames) and a.branches == b.branches
    assert a.branches != fresh(1)(3).branches and a.branches != fresh()(4).branches


@forks
def test_workers_draw_the_same_batches_in_the_same_order(clips):
    """Bit for bit; nobody's random state is touched, and nobody is left."""
    sampler = Sampler(
        clips, Reader(16, 48), 3, 6, 0, thinning=2.0, annotate=lambda clip, v: np.ones((len(v.frames), 9))
    )
    before = torch.get_rng_state()
    drawn = sampler.of(range(2, 9), workers=2)
    for batch, plain in zip(drawn, sampler.of(range(2, 9)), strict=True):
        assert torch.equal(batch.frames, plain.frames) and torch.equal(batch.scores, plain.scores)
        assert torch.equal(batch.num_frames, plain.num_frames)
        assert (batch.branches, batch.stamps, batch.still) == (plain.branches, plain.stamps, plain.still)
    assert torch.equal(torch.get_rng_state(), before) and not multiprocessing.active_children()
    unfinished = sampler.beyond(2, 5, workers=2)
    assert torch.equal(next(unfinished).frames, sampler(2).frames) and len(multiprocessing.active_children()) == 2
    unfinished.close()
    assert not multiprocessing.active_children()


@forks
def test_what_workers_cannot_read_comes_home(clips, tmp_path):
    nothing = replace(clips[0], video=tmp_path / "none.mp4")
    sampler = Sampler([nothing, *clips[1:5]], Reader(16, 48), 5, 6, 0)
    assert len(list(sampler.of(range(2), workers=1))) == 2 and list(sampler.reader.broken) == [nothing.source]
    drawn = Sampler([nothing], Reader(16, 48), 1, 6, 0).of(range(2), workers=1)
    with pytest.raises(VideoError, match=r"^none of the 1 training clips can be read"):
        next(drawn)
    assert not multiprocessing.active_children()


def named(kinds):
    """Clips of these kinds, with nothing in them."""
    return [Clip(f"{i}.mp4", kind, "train", i, ()) for i, kind in enumerate(kinds)]


def test_a_curriculum_shows_its_kinds_in_turn_and_then_all_that_is_judged():
    clips = named(["short", "brief", "image", "watch", "image", "brief", "image"])
    kinds = lambda step: {clips[n].kind for n in sampler.clip_numbers(step)}
    sampler = Sampler(clips, None, 3, 6, 0, stages=(("image", 2), ("brief", 3)))
    assert [kinds(step) for step in range(5)] == [{"image"}] * 2 + [{"brief"}] * 3
    assert set.union(*(kinds(step) for step in range(5, 12))) == {"short", "image", "watch"}
    assert sorted(sampler.clip_numbers(0)) == [2, 4, 6]
    skipped = Sampler(clips, None, 3, 6, 0, stages=(("image", 0), ("brief", 1)))
    assert {clips[n].kind for n in skipped.clip_numbers(0)} == {"brief"}
    late = Sampler(named(["image"] * 3 + ["short"] * 6), None, 3, 6, 0, stages=(("image", 1),))
    epoch = [n for step in (1, 2, 3) for n in late.clip_numbers(step)]
    assert sorted(epoch) == list(range(9))  # the mixed clips' first epoch starts where the curriculum ends
    only = Sampler(named(["brief", "brief"]), None, 2, 6, 0)
    assert sorted(only.clip_numbers(7)) == [0, 1]  # nothing else there


@settings(max_examples=settings.default.max_examples // 2)
@given(st.integers(1, 7), st.integers(0, 3))
def test_an_epoch_shows_every_clip_once_but_for_what_fills_no_batch(batch_size, seed):
    clips = named(["short"] * 12 + ["image"] * 7)
    numbers = Sampler(clips, None, batch_size, 6, seed).clip_numbers
    steps = 12 // batch_size + 7 // batch_size
    epochs = [[numbers(step) for step in range(e * steps, (e + 1) * steps)] for e in range(3)]
    for epoch in epochs:
        shown = [n for batch in epoch for n in batch]
        assert len(set(shown)) == len(shown) == steps * batch_size
        assert all(len({clips[n].kind for n in batch}) == 1 for batch in epoch)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_kind_with_few_clips_fills_its_batch_by_repeating():
    assert sorted(Sampler(named(["short"] * 2), None, 5, 6, 0).clip_numbers(0)) == [0, 0, 0, 1, 1]


def test_each_task_is_asked_before_any_is_asked_twice(clips):
    sampler = Sampler(clips, None, 2, 6, 0)
    for seed in range(20):
        own = sampler._choose(clips[0], np.random.default_rng(seed))
        assert len({q.task for q in own}) == len(own) == 6
    assert len(sampler._choose(clips[-1], np.random.default_rng(0))) <= 6


def test_one_question_in_three_shows_its_options(clips):
    clip = replace(clips[0], qa=tuple(QA("speed", f"which at {t} ?", "red", ("red", "blue")) for t in range(9)))
    sampler, rng = Sampler([clip], None, 1, 10, seed=0), np.random.default_rng(0)
    shown = [OPTION in prompt for _ in range(200) for (prompt, _), _ in sampler._asked(clip, rng)]
    assert abs(sum(shown) / 1800 - 1 / 3) < 0.04  # 3.6 standard deviations


def test_of_a_brief_clip_every_entrance_is_asked():
    scene = make_scene("train", "brief", 0)
    qa = tuple(QA(q.task, q.text, q.answer, q.options) for q in scene.questions)
    sampler = Sampler(named(["brief"]), None, 1, 10, 0)
    for kind, entrances in (("brief", 4), ("short", 1)):
        own = sampler._choose(Clip("x", kind, "train", 0, qa), np.random.default_rng(1))
        assert sum(q.task == "enter" for q in own) == entrances and len({q.question for q in own}) == len(own)
        assert len(own) == 9 + entrances and len({q.task for q in own}) == 10


def test_direction_is_a_choice_of_two_opposites_while_only_brief_clips_are_shown():
    scene = make_scene("train", "brief", 0)
    qa = tuple(QA(q.task, q.text, q.answer, q.options) for q in scene.questions)

    def shown(kind: str, late: tuple = ("direction",)) -> set[str]:
        """The options that questions about direction came with, and the answers of those that showed none."""
        clip = Clip("x", kind, "train", 0, qa)
        sampler, rng = Sampler([clip], None, 1, 16, 0, late=late), np.random.default_rng(0)
        texts = set()
        for (prompt, answer), task in (own for _ in range(20) for own in sampler._asked(clip, rng)):
            if sampler.tasks[task] == "direction":
                words = TOKENIZER.decode(prompt).split("<option>")[1:]
                texts.add(" ".join(" ".join(words).replace("<answer>", "").split()) or TOKENIZER.decode(answer))
        return texts

    pairs = {"left right", "right left", "up down", "down up"}
    answers = {q.answer for q in qa if q.task == "direction"}
    assert shown("brief") <= pairs and {pair.split()[0] for pair in shown("brief")} >= answers
    for others in (shown("short"), shown("brief", late=())):
        assert answers <= others and not others & pairs


def test_preload_reads_what_the_reader_reads(clips):
    sources = [c.source for c in clips]
    every, some = Reader(16, 48), Reader(16, 48, cache_gb=1e-4)
    every.preload(clips)
    some.preload(clips)
    assert list(every.cache) == sources and list(some.cache) == sources[:1]
    assert np.array_equal(every(clips[4]).frames, Reader(16, 48)(clips[4]).frames)


def test_a_video_with_many_lines_is_decoded_and_counted_once_and_what_is_not_kept_takes_no_room(clips, monkeypatch):
    sizes, real, read = [Reader(16, 48)(clip).frames.nbytes for clip in clips[:2]], batches.try_read, []
    monkeypatch.setattr(batches, "try_read", lambda clip, *_, **how: read.append(clip) or real(clip, *_, **how))
    reader = Reader(16, 48, cache_gb=sum(sizes) / 1e9)
    reader.preload([*[clips[0]] * 5, clips[1], *clips])
    assert list(reader.cache) == [clip.source for clip in clips[:2]] and reader.room == 0
    reader.preload(clips[:2])
    assert [read.count(clip) for clip in clips[:3]] == [1, 1, 1] and len(read) == 3
    assert reader(clips[4]) is not None and reader.room == 0 and reader.full


def test_many_jobs_go_to_processes_and_come_back_in_order():
    assert list(on_disk.on_all_cores(abs, range(-70, 0))) == list(range(70, 0, -1))


def test_a_script_that_workers_cannot_import_gets_an_answer_and_does_not_hang():
    script = "from stts_mini.data.clips import on_all_cores; list(on_all_cores(abs, range(70)))"
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "under `if __name__ == '__main__':`" in done.stderr


def test_the_processes_end_when_nobody_reads_on(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # one will do
    results = on_disk.on_all_cores(abs, range(-70, 0))
    assert next(results) == 70 and len(multiprocessing.active_children()) == 1
    results.close()
    assert not multiprocessing.active_children()


def test_thinning_draws_a_number_of_frames_for_each_step(clips):
    long = [c for c in clips if c.kind == "watch"] * 2
    sampler = Sampler(long, Reader(16, 48, 4.0), 4, 6, 0, thinning=4.0)
    lengths = [int(sampler(step).num_frames.max()) for step in range(40)]
    assert min(lengths) in (4, 5) and max(lengths) in (15, 16) and len(set(lengths)) > 6
    assert sum(n < 8 for n in lengths) > 10 and sum(n >= 8 for n in lengths) > 10  # log-uniform
    assert all(set(sampler(step).num_frames.tolist()) == {lengths[step]} for step in range(3))
    coarse = Sampler(long, Reader(16, 48, 4.0), 4, 6, 0, thinning=4.0, coarse_steps=20)
    few = [int(coarse(step).num_frames.max()) for step in range(40)]
    assert set(few[:20]) == {4} and few[20:] == lengths[20:]  # a quarter of 16 frames, and then as before


def test_a_batch_can_carry_scores(clips):
    """For each clip what `annotate` says of the frames that are shown, padded as the frames are."""
    annotate = lambda clip, video: np.full((len(video.frames), 9), clip.seed + 1.0)
    sampler = Sampler(clips, Reader(16, 48), 4, 6, 0, annotate=annotate)
    for step in range(4):
        batch, numbers = sampler(step), sampler.clip_numbers(step)
        assert batch.scores.shape == (4, batch.frames.shape[1], 9) and batch.scores.dtype == torch.float32
        for b, (number, real) in enumerate(zip(numbers, batch.num_frames.tolist(), strict=True)):
            assert (batch.scores[b, :real] == clips[number].seed + 1).all() and not batch.scores[b, real:].any()
    assert Sampler(clips, Reader(16, 48), 4, 6, 0)(0).scores is None


def test_late_tasks_are_asked_in_full_and_every_other_once(clips):
    clip = next(clip for clip in clips if clip.kind == "short")
    whole = Counter(qa.task for qa in clip.qa)
    assert whole["direction"] == 2 and whole["start"] == 3
    for late in ((), ("direction", "start")):
        sampler = Sampler([clip], Reader(4, 48), 1, 13, seed=0, late=late)
        for seed in range(20):
            chosen = sampler._choose(clip, np.random.default_rng(seed))
            asked = Counter(qa.task for qa in chosen)
            assert len(chosen) == len(set(chosen)) == 13 and set(asked) == set(whole)
            assert all(asked[task] == whole[task] for task in late)
            if late:  # 13 are these five and one of each other task
                assert all(n == 1 for task, n in asked.items() if task not in late)
