"""The toy video world: what happens in it, and what is asked about it.

A scene is a pure function of (split, kind, seed). Coloured objects enter, move, blink, grow, spin and leave. The
textured background is still or pans slowly. Panels flicker, ripple and drift but mean nothing, so a method that keeps
every change wastes its budget on them. Objects enter *after* the first frame, because pruning never touches that one.

    make_scene("train", "short", 7)          a Scene with its questions; `drawing.py` makes it a picture

| kind   | seconds | its tasks                                             | stands for |
|--------|---------|-------------------------------------------------------|------------|
| short  | 3.5–4   | attribute, count, action, direction, speed, order     | the paper's short benchmarks |
| watch  | 32–96   | needle, needle-sub, event-count                       | its long ones |
| parade | 32–96   | at-time, at-time-sub, before-after, open              | its long ones |
| image  | 0       | attribute, count                                      | the control: never pruned |
| brief  | 2.5     | none: to learn from when things happen                | |
| glance | 12–16   | none: to learn the long tasks from, on few frames     | |

Every object and every panel has slots of its own. Objects that grow or spin reach a little beyond them. Beside the
tasks, every scene has questions about where and when. They are dense supervision for training and are not evaluated.
Subtitles ("-sub") are part of the question. They say when something happens, never what. A mover needs a free slot to
go to, so guessing its direction from the slot that it starts in is right in 44%.

To add a kind of clip, write a function for `SCENES` (objects with a timeline, questions that name their evidence). Put
its tasks under that kind in `TASKS` and in `SHORT_TASKS` or `LONG_TASKS`, and its words into `words`. Raise
`WORLD_VERSION` by 1. Then `--train-clips KIND=COUNT` trains on it.

What this file does not do: draw (`drawing.py`) or write files (`data/clips.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from stts_mini.toy.drawing import COLOURS, SHAPES, SLOT, Event, Object, Panel, Question, Scene

ACTIONS = {"move": "moves", "blink": "blinks", "grow": "grows", "spin": "spins"}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITES = {"left": "right", "right": "left", "up": "down", "down": "up"}
COUNTS = ("0", "1", "2", "3")
PANELS = ("flicker", "ripple", "drift")
MOST_PANELS = 2  # distractors in a scene
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SHORT_TASKS = ("attribute", "count", "action", "direction", "speed", "order")
LONG_TASKS = ("needle", "needle-sub", "event-count", "at-time", "at-time-sub", "before-after", "open")
SPLITS = ("train", "val", "test")
WORLD_VERSION = 6  # part of the data's fingerprint: raise it whenever a scene changes

SLOW = 0.65  # how far the slower of two movers goes while the faster one goes a slot

# A scene before panels and background: seconds, frames a second, objects, questions, free slots.
Plot = tuple[float, float, list[Object], list[Question], list[int]]


# ------------------------------------------------------------------------------------ what happens


def _pick(rng: np.random.Generator, options, p=None):
    return options[int(rng.choice(len(options), p=p))]


def _shuffled(rng: np.random.Generator, a, b) -> tuple:
    return (a, b) if rng.random() < 0.5 else (b, a)


def _place(rng: np.random.Generator, movers: int) -> tuple[list, list]:
    """Four different slots in random order, and the slots left over. Each of the first `movers` slots comes with a
    direction in which its neighbour is free, the others with None. Tries again until all fit."""
    while True:
        free, moving = list(range(9)), []
        for _ in range(movers):
            slot, direction = _pick(rng, free), _pick(rng, tuple(DIRECTIONS))
            dx, dy = DIRECTIONS[direction]
            row, column = slot // 3 + dy, slot % 3 + dx
            target = row * 3 + column
            if not (0 <= row < 3 and 0 <= column < 3 and target in free):
                break
            free = [other for other in free if other not in (slot, target)]
            moving.append((slot, direction))
        if len(moving) == movers:
            rng.shuffle(free)
            return [*moving, *((slot, None) for slot in free[: 4 - movers])], free[4 - movers :]


def _centre(rng: np.random.Generator, slot: int) -> tuple[float, float]:
    row, column = divmod(slot, 3)
    jitter = rng.uniform(-0.02, 0.02, 2)
    return (column + 0.5) * SLOT + jitter[0], (row + 0.5) * SLOT + jitter[1]


def _shapes_with_a_count(rng: np.random.Generator) -> tuple[list[str], str]:
    """Four shapes, and one to ask for. How often it occurs is uniform over COUNTS."""
    asked = _pick(rng, SHAPES)
    count = int(rng.integers(len(COUNTS)))
    shapes = [asked] * count + [_pick(rng, [s for s in SHAPES if s != asked]) for _ in range(4 - count)]
    rng.shuffle(shapes)
    return shapes, asked


# ------------------------------------------------------------------------------------ what is asked


def _seen(objects: Sequence[Object]) -> tuple[tuple[int, float, float], ...]:
    """Each object as evidence, during the whole time that it is in view."""
    return tuple((i, o.enter, o.leave) for i, o in enumerate(objects))


def _attribute_questions(objects: Sequence[Object]) -> list[Question]:
    """Questions about every object whose colour or shape no other has."""
    shapes, colours = [o.shape for o in objects], [o.colour for o in objects]
    questions = []
    for o, seen in zip(objects, _seen(objects), strict=True):
        if colours.count(o.colour) == 1:
            questions.append(Question("attribute", f"what shape is the {o.colour} object ?", o.shape, SHAPES, (seen,)))
        if shapes.count(o.shape) == 1:
            text = f"what colour is the {o.shape} ?"
            questions.append(Question("attribute", text, o.colour, tuple(COLOURS), (seen,)))
    return questions


def _appearance_questions(objects: Sequence[Object], asked: str) -> list[Question]:
    """Attribute questions and one count."""
    text, count = f"how many {asked} objects are there ?", sum(o.shape == asked for o in objects)
    return [*_attribute_questions(objects), Question("count", text, str(count), COUNTS, _seen(objects))]


def _with_subtitles(questions: Iterable[Question], subtitles: str) -> list[Question]:
    """Each question twice: unchanged, and as a task of its own with subtitles before it."""
    return [r for q in questions for r in (q, replace(q, task=f"{q.task}-sub", text=f"{subtitles} {q.text}"))]


def _details(objects: Sequence[Object], timed: bool = False) -> list[Question]:
    """Dense supervision for training, not evaluated: the first and the last row and column of each object, and when it
    starts to do something. If `timed`, also when it enters. Otherwise also a tally of all shapes. Most answers have one
    token, since in a long description each fact gets too little of the loss to be learned."""
    colours, questions = [o.colour for o in objects], []
    for o, seen in zip(objects, _seen(objects), strict=True):
        facts = [
            ("row", "first row of {} ?", ROWS[int(o.y * 3)]),
            ("column", "first column of {} ?", COLUMNS[int(o.x * 3)]),
        ]
        if timed:
            facts.append(("enter", "when does {} enter ?", f"{o.enter:.1f}"))
        for event in o.events:
            facts.append(("start", "when does {} start ?", f"{event.start:.1f}"))
            if event.kind == "move":
                row, column = ROWS[int((o.y + event.dy) * 3)], COLUMNS[int((o.x + event.dx) * 3)]
                facts += [("row", "last row of {} ?", row), ("column", "last column of {} ?", column)]
        if colours.count(o.colour) == 1:
            questions += [Question(task, text.format(o.colour), fact, (fact,), (seen,)) for task, text, fact in facts]
    if not timed:
        answer = " ".join(f"{shape} {sum(o.shape == shape for o in objects)}" for shape in SHAPES)
        questions.append(Question("tally", "tally", answer, (answer,), _seen(objects)))
    return questions


def _happening_questions(rng: np.random.Generator, objects: list[Object]) -> list[Question]:
    """Action, direction, speed and order, of two objects that move (the first two) and one that acts."""
    during = [(i, o.events[0].start - 0.5, o.events[0].end) for i, o in enumerate(objects[:3])]
    actor = _pick(rng, (0, 2, 2, 2))  # so that all four actions are equally likely
    text, action = f"what does the {objects[actor].colour} object do ?", ACTIONS[objects[actor].events[0].kind]
    questions = [Question("action", text, action, tuple(ACTIONS.values()), (during[actor],))]
    moves = [o.events[0] for o in objects[:2]]
    for o, move, evidence in zip(objects, moves, during, strict=False):
        (direction,) = (name for name, (dx, dy) in DIRECTIONS.items() if dx * move.dx + dy * move.dy > 0)
        text = f"which way does the {o.colour} object move ?"
        questions.append(Question("direction", text, direction, tuple(DIRECTIONS), (evidence,)))

    def compare(task: str, what: str, pair: tuple[int, int], right: int, evidence: Iterable) -> None:
        a, b = (objects[i].colour for i in pair)
        text = f"which {what} , {a} or {b} ?"
        questions.append(Question(task, text, objects[right].colour, (a, b), tuple(evidence)))

    pair = _shuffled(rng, 0, 1)
    compare("speed", "moves faster", pair, max(pair, key=lambda i: abs(moves[i].dx + moves[i].dy)), during[:2])
    if moves[0].start != moves[1].start:
        compare("order", "moves first", pair, min(pair, key=lambda i: moves[i].start), during[:2])
    pairs = [(i, j) for i, a in enumerate(objects) for j, b in enumerate(objects) if a.enter < b.enter]
    if pairs:
        pair = _pick(rng, pairs)
        seen = ((i, objects[i].enter, objects[i].enter + 0.5) for i in pair)
        compare("order", "enters first", _shuffled(rng, *pair), pair[0], seen)
    return questions


# ---------------------------------------------------------------------------------------- the kinds


def _moving_scene(rng: np.random.Generator, duration: float, fps: float, timeline: Callable) -> Plot:
    """Four objects: two move at different speeds, one blinks, grows or spins, and one is still. `timeline(i)` gives
    object i's (enter, start, length of its event, leave). At random, the slower mover begins in the middle of its slot
    or ends in the middle of the next. So no single frame shows which one is slower."""
    shapes, asked = _shapes_with_a_count(rng)
    colours = rng.permutation(list(COLOURS))[:4].tolist()
    places, rest = _place(rng, 2)
    fast, objects = int(rng.integers(2)), []
    # Nobody can see a circle spin. These weights still make the three actions equally likely overall.
    weights = (1 / 2, 1 / 2, 0) if shapes[2] == "circle" else (5 / 18, 5 / 18, 4 / 9)
    action = _pick(rng, ("blink", "grow", "spin"), weights)
    for i, (slot, direction) in enumerate(places):
        enter, start, length, leave = (float(t) for t in timeline(i))
        x, y = _centre(rng, slot)
        events = (Event(action, start, start + length),) if i == 2 else ()
        if direction is not None:
            reach = SLOT if i == fast else SLOW * SLOT
            dx, dy = (reach * part for part in DIRECTIONS[direction])
            if i != fast and rng.random() < 0.5:
                x, y = x + dx * (1 - SLOW) / SLOW, y + dy * (1 - SLOW) / SLOW
            events = (Event("move", start, start + length, dx, dy),)
        objects.append(Object(shapes[i], colours[i], x, y, enter, leave, events))
    questions = _appearance_questions(objects, asked) + _happening_questions(rng, objects)
    return duration, fps, objects, questions + _details(objects, timed=True), rest


def _short(rng: np.random.Generator) -> Plot:
    """3.5 to 4 s, six tasks. Everything that enters stays."""
    enters, starts = rng.permutation([0.5, 0.5, 1.0, 1.0]), rng.permutation([1.5, 2.5])

    def timeline(i: int) -> tuple:
        """The two movers take turns. The third object acts in between."""
        return enters[i], starts[i] if i < 2 else _pick(rng, (1.5, 2.0)), 1.0 if i < 2 else 1.5, np.inf

    return _moving_scene(rng, _pick(rng, (3.5, 4.0)), 10.0, timeline)


def _brief(rng: np.random.Generator) -> Plot:
    """2.5 s to learn time from, not evaluated. Half of the objects soon leave again, because an object that is visible
    only briefly shows its time more clearly than one that stays."""

    def timeline(i: int) -> tuple:
        """Independent of the other objects."""
        enter = _pick(rng, (0.5, 1.0, 1.5) if i != 2 else (0.5, 1.0))
        start = enter + (0.5 if i == 2 else _pick(rng, (0.0, 0.5)))
        return enter, start, 0.5 if i < 2 else 1.0, _pick(rng, (start + (0.5 if i == 3 else 1.0), np.inf))

    return _moving_scene(rng, 2.5, 4.0, timeline)


def _watch(rng: np.random.Generator, shortest: int = 32, longest: int = 96) -> Plot:
    """Three objects enter early and stay, and one of them grows now and then. A fourth flashes once, for 1.5 to 6 s.
    In a clip of less than 32 s everything happens sooner. The fourth may look like any other, so the three say nothing
    about it."""
    duration = float(rng.integers(2 * shortest, 2 * longest + 1)) / 2
    pace = min(duration / 32, 1.0)
    shapes = [_pick(rng, SHAPES) for _ in range(4)]
    colours = [*rng.permutation(list(COLOURS))[:3].tolist(), _pick(rng, tuple(COLOURS))]
    places, rest = _place(rng, 0)
    length = float(rng.uniform(1.5, max(6.0 * pace, 2.0)))
    start = float(rng.uniform(8.0 * pace, duration - length))
    spans = [(float(rng.uniform(0.5, 6.0 * pace)), np.inf) for _ in range(3)] + [(start, start + length)]
    times = int(rng.integers(len(COUNTS)))
    growths = []
    for i in range(times):  # cut the time after 7 s into equal parts: each has one growth, then a pause
        part = (duration - 7.0 * pace) / times
        lasts = rng.uniform(1.5, min(5.0, 0.55 * part))
        begins = 7.0 * pace + i * part + rng.uniform(0, part - lasts - max(2.0 * pace, 1.4))
        growths.append(Event("grow", float(begins), float(begins + lasts)))
    objects = [
        Object(shape, colour, *_centre(rng, slot), *span, events)
        for shape, colour, (slot, _), span, events in zip(
            shapes, colours, places, spans, (tuple(growths), (), (), ()), strict=True
        )
    ]
    grower, needle = objects[0], objects[3]
    calm = [float(t) for t in rng.uniform(1.0, duration, 2) if not start <= t <= start + length]
    lines = sorted([(t, "calm") for t in calm] + [(start + length / 2, "look")])
    subtitles = " ".join(f"{t:.1f} {word} ," for t, word in lines)
    flash = ((3, start, start + length),)
    flashes = [
        Question("needle", "what colour flashes ?", needle.colour, tuple(COLOURS), flash),
        Question("needle", "what shape flashes ?", needle.shape, SHAPES, flash),
    ]
    text = f"how many times is {grower.colour} big ?"
    always = ((0, grower.enter, duration),)  # the whole time, so that the evidence does not depend on the answer
    questions = [
        *_with_subtitles(flashes, subtitles),
        *(q for q in _attribute_questions(objects) if q.evidence[0][0] != 3),
        *(q for q in _details(objects) if q.task != "start"),
        Question("event-count", text, str(times), COUNTS, always),
    ]
    for t in (*(rng.uniform(e.start, e.end) for e in growths), *rng.uniform(7.0 * pace, duration, 2)):
        size = "big" if any(e.start <= t < e.end for e in growths) else "small"
        questions.append(Question("size", f"size of {grower.colour} at {t:.1f} ?", size, (size,), ((0, t, t),)))
    return duration, 2.0, objects, list({q.text: q for q in questions}.values()), rest


def _parade(rng: np.random.Generator, shortest: int = 32, longest: int = 96) -> Plot:
    """Four objects, one after the other. Each is in view for 2 to 8 s and then leaves. In a clip of less than 32 s it
    is for 1.4 s or more."""
    duration = float(rng.integers(2 * shortest, 2 * longest + 1)) / 2
    pace = min(duration / 32, 1.0)
    shapes, colours = [_pick(rng, SHAPES) for _ in range(4)], rng.permutation(list(COLOURS))[:4].tolist()
    places, rest = _place(rng, 0)
    part, objects = (duration - 2.0 * pace) / 4, []
    for i, (slot, _) in enumerate(places):
        lasts = rng.uniform(max(2.0 * pace, 1.4), max(min(8.0, part - 2.0), 1.6))
        enter = float(2.0 * pace + i * part + rng.uniform(0, part - lasts - pace))
        objects.append(Object(shapes[i], colours[i], *_centre(rng, slot), enter, float(enter + lasts)))
    seen = _seen(objects)
    subtitles = " ".join(f"{o.enter:.1f} one enters ," for o in objects)
    questions = []
    for i in rng.permutation(4):
        text = f"which colour is in view at {rng.uniform(seen[i][1] + 0.2, seen[i][2] - 0.2):.1f} ?"
        questions.append(Question("at-time", text, colours[i], tuple(COLOURS), (seen[i],)))
    questions = _with_subtitles(questions, subtitles)
    for i in rng.permutation(3):
        others = tuple(c for c in COLOURS if c != colours[i])
        text = f"which colour enters right after {colours[i]} leaves ?"
        questions.append(Question("before-after", text, colours[i + 1], others, (seen[i], seen[i + 1])))
    right = " ".join(colours)
    wrong = {" ".join(rng.permutation(colours)) for _ in range(12)} - {right}
    options = (right, *rng.permutation(sorted(wrong))[:3].tolist())
    questions.append(Question("open", "which colours enter , in order ?", right, options, seen))
    questions += [q for q in _attribute_questions(objects) if q.answer in SHAPES]
    return duration, 2.0, objects, questions + _details(objects), rest


def _image(rng: np.random.Generator) -> Plot:
    """One frame with four objects: attribute and count."""
    shapes, asked = _shapes_with_a_count(rng)
    colours = rng.permutation(list(COLOURS))[:4].tolist()
    places, rest = _place(rng, 0)
    looks = zip(shapes, colours, places, strict=True)
    objects = [Object(shape, colour, *_centre(rng, slot)) for shape, colour, (slot, _) in looks]
    return 0.0, 4.0, objects, _appearance_questions(objects, asked) + _details(objects), rest


def _glance(rng: np.random.Generator) -> Plot:
    """A watch or a parade of 12 to 16 s, not evaluated. It is so short that a dozen frames miss nothing."""
    return _pick(rng, (_watch, _parade))(rng, 12, 16)


SCENES = {
    "short": _short, "watch": _watch, "parade": _parade, "image": _image, "brief": _brief, "glance": _glance,
}  # fmt: skip
TASKS = {  # the tasks that each kind is evaluated on
    "short": SHORT_TASKS, "watch": LONG_TASKS[:3], "parade": LONG_TASKS[3:], "image": ("attribute", "count"),
    "brief": (), "glance": (),
}  # fmt: skip
GENERATED = ("open",)  # scored by generation; all others by multiple choice


def make_scene(split: str, kind: str, seed: int, panels: int = MOST_PANELS) -> Scene:
    """The scene with this seed. Splits never share a scene. `panels` is the number of distractors: all are drawn and
    the rest is dropped, so that nothing else in the scene changes. Raises ValueError for an unknown name, and for
    panels that are not 0, 1 or 2.

    >>> scene = make_scene("test", "image", 0)
    >>> len(scene.objects), scene.questions[0].task, scene == make_scene("test", "image", 0)
    (4, 'attribute', True)
    """
    if split not in SPLITS or kind not in SCENES:
        known = f"the splits {', '.join(SPLITS)} and the kinds {', '.join(SCENES)}"
        raise ValueError(f"split {split!r}, kind {kind!r}: we know {known}")
    if panels not in range(MOST_PANELS + 1):
        raise ValueError(f"panels {panels!r}: give 0, 1 or {MOST_PANELS}")
    rng = np.random.default_rng((WORLD_VERSION, SPLITS.index(split), tuple(SCENES).index(kind), seed))
    duration, fps, objects, questions, free = SCENES[kind](rng)
    drawn = tuple(Panel(_pick(rng, PANELS), slot, int(rng.integers(1 << 31))) for slot in free[:MOST_PANELS])
    pan = tuple(rng.uniform(-0.03, 0.03, 2)) if rng.random() < 0.5 else (0.0, 0.0)
    return Scene(kind, duration, fps, tuple(objects), drawn[:panels], pan, int(rng.integers(1 << 31)), tuple(questions))


def words() -> list[str]:
    """Every word that a question, an option or an answer can contain, in a fixed order."""
    short = """what which how many when does do is are the there way first last row column of object objects
        colour shape move moves flashes faster enter enters start or ? , tally"""
    long = "times in view at right after leaves colours order size big small calm look one"
    named = [*COLOURS, *SHAPES, *ACTIONS.values(), *DIRECTIONS, *ROWS, *COLUMNS, *COUNTS, "4"]
    return list(dict.fromkeys([*short.split(), *named, *long.split()]))
