"""The toy world: pure, balanced, true to its ground truth, and unguessable from text."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from stts_mini.toy import world
from stts_mini.toy.drawing import COLOURS, SHAPES, Event, Object, Question, Scene, evidence, render
from stts_mini.toy.world import make_scene

SCENES = {kind: [make_scene("train", kind, seed) for seed in range(400)] for kind in world.SCENES}


@pytest.mark.parametrize("kind", world.SCENES)
def test_a_scene_is_a_pure_function_of_its_name(kind):
    a, b = make_scene("test", kind, 5), make_scene("test", kind, 5)
    assert a == b and a != make_scene("test", kind, 6) and a != make_scene("train", kind, 5)
    times = a.times[:4]
    frames = render(a, times, 48)
    assert frames.shape == (len(times), 48, 48, 3) and frames.dtype == np.uint8
    assert np.array_equal(frames, render(b, times, 48))
    if len(times) > 3:
        assert np.array_equal(frames[3], render(a, times[3:], 48)[0])  # a frame knows only its own time


@pytest.mark.parametrize("split, kind", [("dev", "short"), ("test", "long")])
def test_unknown_names_are_refused(split, kind):
    with pytest.raises(ValueError, match="know the splits train, val, test and the kinds short, watch, parade, image"):
        make_scene(split, kind, 0)


@pytest.mark.parametrize("kind", world.SCENES)
def test_every_task_is_asked_and_every_answer_is_an_option(kind):
    for scene in SCENES[kind]:
        tasks = {q.task for q in scene.questions}
        assert set(world.TASKS[kind]) <= tasks
        texts = [q.text for q in scene.questions]
        assert len(set(texts)) == len(texts)
        for q in scene.questions:
            detail = q.task in ("row", "column", "enter", "start", "tally", "size")  # training only: no choice
            assert q.answer in q.options and len(set(q.options)) == len(q.options) and (len(q.options) == 1) == detail


@pytest.mark.parametrize("kind", world.SCENES)
def test_answers_are_balanced(kind):
    """Chi-square-like: no answer is more than 4 standard deviations from its equal share."""
    seen = defaultdict(Counter)
    for scene in SCENES[kind]:
        for q in (q for q in scene.questions if len(q.options) > 1 and q.task != "open"):
            pair = len(q.options) == 2
            text = q.text[q.text.rindex(",") + 2 :] if q.task.endswith("-sub") else q.text
            form = (q.task, " ".join(text.split()[:3]))
            seen[form]["first" if pair and q.answer == q.options[0] else "second" if pair else q.answer] += 1
    for form, counts in seen.items():
        answers = 6 if "colour" in form[1] else 2 if set(counts) == {"first", "second"} else 4
        n, share = sum(counts.values()), 1 / answers
        assert len(counts) == answers, (form, counts)
        for answer, count in counts.items():
            assert abs(count - n * share) < 4 * (n * share * (1 - share)) ** 0.5, (form, answer, counts)


def test_attribute_questions_name_one_object():
    for scene in SCENES["short"]:
        colours = [o.colour for o in scene.objects]
        assert len(set(colours)) == len(colours)
        for q in scene.questions:
            if q.text.startswith("what colour is the"):
                (only,) = [o for o in scene.objects if o.shape == q.text.split()[4]]
                assert only.colour == q.answer
            if q.text.startswith("how many"):
                assert sum(o.shape == q.text.split()[2] for o in scene.objects) == int(q.answer)


def test_details_tell_where_and_when():
    mover = Object("cross", "red", 0.5, 0.9, enter=0.5, events=(Event("move", 1.5, 2.5, dx=-1 / 3),))
    short = Object("cross", "green", 0.9, 0.5, enter=0.5, events=(Event("move", 2.5, 3.5, dy=-0.65 / 3),))
    still = Object("circle", "blue", 0.1, 0.1, enter=1.0)
    told = {(q.task, q.text, q.answer) for q in world._details((mover, short, still), timed=True)}
    assert told == {
        ("row", "first row of red ?", "bottom"),
        ("column", "first column of red ?", "centre"),
        ("enter", "when does red enter ?", "0.5"),
        ("start", "when does red start ?", "1.5"),
        ("row", "last row of red ?", "bottom"),
        ("column", "last column of red ?", "left"),
        ("row", "first row of green ?", "middle"),
        ("column", "first column of green ?", "right"),
        ("enter", "when does green enter ?", "0.5"),
        ("start", "when does green start ?", "2.5"),
        ("row", "last row of green ?", "top"),
        ("column", "last column of green ?", "right"),
        ("row", "first row of blue ?", "top"),
        ("column", "first column of blue ?", "left"),
        ("enter", "when does blue enter ?", "1.0"),
    }
    untimed = [(q.task, q.answer) for q in world._details((still,))]
    assert untimed == [("row", "top"), ("column", "left"), ("tally", "circle 1 square 0 triangle 0 cross 0")]


def answer_oracle(scene, text):
    """The answer, worked out from the objects alone."""
    named = {o.colour: o for o in scene.objects}
    words = text.removesuffix(" ?").replace(" ,", "").split()
    moves = {c: o.events[0] for c, o in named.items() if o.events and o.events[0].kind == "move"}
    if text.startswith("what does the"):
        return world.ACTIONS[named[words[3]].events[0].kind]
    if text.startswith("which way"):
        event = moves[words[4]]
        return {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[np.sign(event.dx), np.sign(event.dy)]
    pair = words[-3], words[-1]
    if text.startswith("which moves faster"):
        speed = {c: np.hypot(moves[c].dx, moves[c].dy) / (moves[c].end - moves[c].start) for c in pair}
        assert max(speed.values()) > 1.4 * min(speed.values())
        return max(speed, key=speed.get)
    when = {c: moves[c].start if text.startswith("which moves first") else named[c].enter for c in pair}
    assert len(set(when.values())) == 2
    return min(when, key=when.get)


@pytest.mark.parametrize("kind", ["short", "brief"])
def test_answers_to_what_happens_are_true(kind):
    asked = Counter()
    for scene in SCENES[kind]:
        for q in scene.questions:
            if q.task in ("action", "direction", "speed", "order"):
                assert q.answer == answer_oracle(scene, q.text), (scene, q)
                asked[q.task] += 1
    assert min(asked.values()) >= 300 and len(asked) == 4


def test_needles_flash_where_they_say():
    for scene in SCENES["watch"]:
        (flash,) = (o for o in scene.objects if o.leave < np.inf)
        for q in (q for q in scene.questions if "flashes" in q.text):
            assert q.answer == (flash.colour if "colour" in q.text else flash.shape)
            assert q.evidence == ((3, flash.enter, flash.leave),) and q.text.endswith(
                ("colour flashes ?", "shape flashes ?")
            )
            if q.task == "needle-sub":  # the subtitles say when
                lines = [line.split() for line in q.text.split(" , ")[:-1]]
                assert [float(t) for t, _ in lines] == sorted(float(t) for t, _ in lines)
                (look,) = (float(t) for t, word in lines if word == "look")
                assert flash.enter - 0.1 < look < flash.leave + 0.1
                assert all(
                    word == "calm" and not flash.enter < float(t) < flash.leave for t, word in lines if float(t) != look
                )


def test_what_is_big_grows_as_often_as_they_say():
    for scene in SCENES["watch"]:
        grower = scene.objects[0]
        spans = [(e.start, e.end) for e in grower.events]
        told = {q.text: q.answer for q in scene.questions if q.task in ("event-count", "size")}
        assert told.pop(f"how many times is {grower.colour} big ?") == str(len(spans))
        ends = [0.0, *(t for span in spans for t in span), scene.duration]
        assert ends == sorted(ends) and all(b - a >= 1.4 for a, b in pairwise(ends)), ends  # told apart
        assert not any(o.events for o in scene.objects[1:])
        for text, answer in told.items():
            assert text.startswith(f"size of {grower.colour} at ")
            t = float(text.split()[-2])
            near = any(min(abs(t - a), abs(t - b)) < 0.06 for a, b in spans)  # a stamp is rounded
            assert near or answer == ("big" if any(a <= t < b for a, b in spans) else "small")


def test_a_parade_passes_as_they_say():
    for scene in SCENES["parade"]:
        ends = [t for o in scene.objects for t in (o.enter, o.leave)]
        assert ends == sorted(ends) and all(1.99 < b - a < 8.01 for a, b in zip(ends[::2], ends[1::2], strict=True))
        assert ends[0] >= 2 and ends[-1] < scene.duration and all(b - a > 0.9 for a, b in list(pairwise(ends))[1::2])
        order = [o.colour for o in scene.objects]
        for q in scene.questions:
            if q.task.startswith("at-time"):
                t = float(q.text.split()[-2])
                (there,) = (o for o in scene.objects if o.enter <= t < o.leave)
                assert q.answer == there.colour and q.evidence == (
                    (order.index(there.colour), there.enter, there.leave),
                )
            if q.task == "at-time-sub":
                lines = [line.split(maxsplit=1) for line in q.text.split(" , ")[:-1]]
                assert lines == [[f"{o.enter:.1f}", "one enters"] for o in scene.objects]
            if q.task == "before-after":
                assert order[order.index(q.text.split()[5]) + 1] == q.answer
            if q.task == "open":
                assert q.answer == " ".join(order) and len(q.options) == 4
                assert all(sorted(option.split()) == sorted(order) for option in q.options)


def test_no_single_frame_tells_who_is_faster():
    """Who ends (or begins) nearer to the middle of a slot: three in four right at best, by the one half whose
    slower mover is off there."""
    right = {"first": 0, "last": 0}
    for scene in SCENES["short"]:
        off = lambda o, x, y: max(abs(x * 3 % 1 - 0.5), abs(y * 3 % 1 - 0.5))
        ends = {"first": [], "last": []}
        for o in scene.objects[:2]:
            (move,) = o.events
            ends["first"].append(off(o, o.x, o.y))
            ends["last"].append(off(o, o.x + move.dx, o.y + move.dy))
        fast = int(np.argmax([np.hypot(o.events[0].dx, o.events[0].dy) for o in scene.objects[:2]]))
        for when, (a, b) in ends.items():
            right[when] += int((a > b) == fast) if max(a, b) > 0.15 else 0.5
    assert all(0.68 < n / len(SCENES["short"]) < 0.82 for n in right.values()), right


def test_what_the_start_slot_says_of_direction():
    """The floor that the module names: the commonest direction from each slot."""
    seen = defaultdict(Counter)
    for scene in SCENES["short"]:
        for o in scene.objects[:2]:
            (move,) = o.events
            seen[int(o.y * 3), int(o.x * 3)][np.sign(move.dx), np.sign(move.dy)] += 1
    best = sum(max(counts.values()) for counts in seen.values()) / (2 * len(SCENES["short"]))
    assert 0.39 < best < 0.49, best


def test_what_stays_says_nothing_of_what_flashes():
    """The flash has the colour of one that stays in half of the clips, as chance has it, and its shape likewise."""
    same = [[o.colour for o in s.objects[:3]].count(s.objects[3].colour) for s in SCENES["watch"]]
    assert 0.42 < np.mean(same) < 0.58
    for scene in SCENES["watch"]:  # and no question is ambiguous
        for q in (q for q in scene.questions if q.task in ("attribute", "row", "column")):
            named = [w for w in q.text.split() if w in COLOURS or w in SHAPES]
            assert sum(named[0] in (o.colour, o.shape) for o in scene.objects) == 1


def test_wrong_orders_do_not_stand_out():
    place = [sorted(q.options).index(q.answer) for s in SCENES["parade"] for q in s.questions if q.task == "open"]
    assert all(0.17 < place.count(i) / len(place) < 0.33 for i in range(4)), [place.count(i) for i in range(4)]


def test_evidence_does_not_tell_how_often_something_grew():
    for scene in SCENES["watch"]:
        (q,) = (q for q in scene.questions if q.task == "event-count")
        assert q.evidence == ((0, scene.objects[0].enter, scene.duration),)


def test_glances_are_short():
    assert all(12 <= s.duration <= 16 and s.kind == "glance" for s in SCENES["glance"])
    tasks = {q.task for s in SCENES["glance"] for q in s.questions}
    assert tasks >= set(world.LONG_TASKS)


def test_subtitles_never_say_what():
    for kind in ("watch", "parade"):
        for q in (q for scene in SCENES[kind] for q in scene.questions if q.task.endswith("-sub")):
            assert not set(q.text.split()) & {*COLOURS, *SHAPES}


def test_nothing_that_is_asked_about_stands_in_frame_0():
    for kind in ("short", "watch", "parade"):
        for scene in SCENES[kind]:
            assert all(o.enter > 0 for o in scene.objects)
            for q in scene.questions:
                assert q.evidence


def test_objects_stay_clear_of_each_other_and_of_panels():
    for scene in SCENES["short"][:60]:
        taken = [{p.slot} for p in scene.panels]
        for o in scene.objects:
            slots = {(int(o.y * 3), int(o.x * 3))}
            for event in o.events:
                slots.add((int((o.y + event.dy) * 3), int((o.x + event.dx) * 3)))
            taken.append({row * 3 + column for row, column in slots})
        for i, a in enumerate(taken):
            assert all(not a & b for b in taken[i + 1 :])


def one_object(*events, shape="square", **timeline):
    return Scene("short", 4.0, 4.0, (Object(shape, "red", 0.5, 0.5, events=events, **timeline),), (), (0.0, 0.0), 0)


def red_pixels(scene, times):
    frames = render(scene, np.array(times), 96).astype(int)
    return (frames[..., 0] > 180) & (frames[..., 1] < 90)


def centre(mask):
    return np.argwhere(mask).mean(0)[::-1] / 96


def test_events_do_what_they_say():
    entering = red_pixels(one_object(enter=1.0, leave=2.0), [0.5, 1.0, 1.5, 2.0])
    assert [bool(m.any()) for m in entering] == [False, True, True, False]
    moving = red_pixels(one_object(Event("move", 1.0, 2.0, dx=0.25, dy=-0.125)), [0.5, 1.5, 3.0])
    np.testing.assert_allclose([centre(m) for m in moving], [(0.5, 0.5), (0.625, 0.4375), (0.75, 0.375)], atol=0.01)
    blinking = red_pixels(one_object(Event("blink", 1.0, 2.5)), [0.5, 1.0, 1.5, 2.0, 2.5])
    assert [bool(m.any()) for m in blinking] == [True, False, True, False, True]
    dim = render(one_object(Event("blink", 1.0, 2.5)), np.array([0.5, 1.0]), 96)[:, 48, 48].astype(int)
    assert dim[1, 0] - dim[1, 1] > 40 and dim[0, 0] - dim[0, 1] > 150  # still there, and still red
    growing = red_pixels(one_object(Event("grow", 1.0, 2.0)), [0.5, 1.5, 2.5]).sum((1, 2))
    assert growing[1] > 1.7 * growing[0] and growing[0] == growing[2]
    spinning = red_pixels(one_object(Event("spin", 1.0, 2.0)), [0.5, 1.5, 2.0])
    assert (spinning[0] ^ spinning[1]).sum() > 100 and (spinning[0] ^ spinning[2]).sum() < 40  # 45°, then 90°


def test_shapes_look_different():
    areas = {s: red_pixels(one_object(shape=s), [1.0])[0] for s in SHAPES}
    for a in areas:
        assert areas[a].sum() > 250
        for b in areas:
            assert a == b or (areas[a] ^ areas[b]).sum() > 60, (a, b)


@pytest.mark.parametrize("kind", ["flicker", "ripple", "drift"])
def test_panels_change_and_the_rest_does_not(kind):
    assert all(len(s.panels) == 2 for s in SCENES["short"])
    scene = next(s for s in SCENES["short"] if s.pan == (0.0, 0.0) and all(p.kind == kind for p in s.panels))
    for before, after in ((0.0, 0.5), (2.0, 3.0)):
        before, after = render(replace(scene, objects=()), np.array([before, after]), 48).astype(int)
        changed = np.abs(before - after).max(-1) > 20
        slots = {(y // 16) * 3 + x // 16 for y, x in np.argwhere(changed)}
        assert slots == {p.slot for p in scene.panels}


@pytest.mark.parametrize("kind", world.SCENES)
def test_the_dial_takes_panels_away_and_changes_nothing_else(kind):
    scenes = [make_scene("val", kind, 3, panels) for panels in (0, 1, 2)]
    assert scenes[2] == make_scene("val", kind, 3) and [len(s.panels) for s in scenes] == [0, 1, 2]
    assert all(replace(s, panels=()) == scenes[0] for s in scenes) and scenes[1].panels == scenes[2].panels[:1]
    pictures = [render(s, s.times, 48) for s in scenes]
    for fewer, more, slot in ((0, 1, scenes[2].panels[0].slot), (1, 2, scenes[2].panels[1].slot)):
        cells = (pictures[fewer] != pictures[more]).any((0, 3)).reshape(3, 16, 3, 16).any((1, 3)).flatten()
        assert np.flatnonzero(cells).tolist() == [slot]


@pytest.mark.parametrize("panels", [-1, 3, 0.5])
def test_a_dial_beyond_its_ends_is_refused(panels):
    with pytest.raises(ValueError, match=f"panels {panels}: give 0, 1 or 2"):
        make_scene("val", "short", 3, panels)


def test_a_background_pans_as_fast_as_it_says():
    scene = Scene("short", 4.0, 4.0, (), (), (0.02, -0.03), 5)
    before, after = render(scene, np.array([0.0, 2.0]), 200).astype(int)[..., 0]
    assert np.abs(before - after).mean() > 2
    assert np.abs(before[:-12, 8:] - after[12:, :-8]).max() <= 1  # 2 s: 8 pixels to the left, 12 down


def test_evidence_is_where_the_answer_is():
    scene = next(s for s in SCENES["short"] if s.pan == (0.0, 0.0))
    times = np.arange(0, 3.6, 0.5)
    q = next(q for q in scene.questions if q.text.startswith("what shape"))
    mask = evidence(scene, (q,), times, 48)
    assert not mask[0].any() and mask[-1].any()
    blinker = one_object(Event("blink", 0.0, 2.0))
    asked = (Question("action", "?", "", ("",), ((0, 0.0, 4.0),)),)
    areas = evidence(blinker, asked, np.array([0.0, 0.5, 1.0, 1.5]), 48).sum((1, 2))
    assert areas[0] == 0 and areas[1] == areas[2] == areas[3] > 0  # frame 0 is given; a dim object is evidence too
    gone = evidence(one_object(enter=1.0, leave=2.0), asked, np.array([0.0, 0.5, 1.0, 2.0]), 48).any((1, 2))
    assert gone.tolist() == [False, False, True, False]
    frames = render(scene, times, 48)[mask].astype(int)
    (index, enter, _), *rest = q.evidence
    assert not rest and not mask[times < enter].any()
    assert (np.abs(frames - COLOURS[scene.objects[index].colour]).max(-1) < 140).all()
    assert np.array_equal(
        evidence(scene, scene.questions, times, 48) | mask, evidence(scene, scene.questions, times, 48)
    )


def test_images_have_one_frame_and_long_clips_are_long():
    assert all(len(s.times) == 1 for s in SCENES["image"])
    for scene in SCENES["watch"] + SCENES["parade"]:
        assert 32 <= scene.duration <= 96 and scene.duration % 0.5 == 0
    assert {len(s.times) for s in SCENES["short"]} == {36, 41}  # ten frames a second
    needles = [s.objects[3] for s in SCENES["watch"]]
    assert all(1.5 <= n.leave - n.enter <= 6 for n in needles)
