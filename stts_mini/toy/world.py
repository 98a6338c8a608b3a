"""The toy video world: what happens in it, and what is asked about it.

A scene is a pure function of (split, kind, seed). Coloured objects enter, move, blink, grow, spin and
leave before a textured background that is still or pans slowly; panels flicker, ripple and drift and
mean nothing (whoever keeps what changes keeps them). Objects enter *after* the first frame, which
pruning never touches, so that what an answer needs must be chosen, not given.

    make_scene("train", "short", 7)          a Scene with its questions; `drawing.py` makes it a picture

| kind   | seconds | its tasks                                             | stands for |
|--------|---------|-------------------------------------------------------|------------|
| short  | 3.5–4   | attribute, count, action, direction, speed, order     | the paper's short benchmarks |
| watch  | 32–96   | needle, needle-sub, event-count                       | its long ones |
| parade | 32–96   | at-time, at-time-sub, before-after, open              | its long ones |
| image  | 0       | attribute, count                                      | the control: never pruned |
| brief  | 2.5     | none: to learn from when things happen                | |
| glance | 12–16   | none: to learn the long tasks from, on few frames     | |

Every object and every panel has slots of its own (what grows or spins reaches a little beyond them).
Beside the tasks, every scene has questions about where and when, judged by nobody: dense supervision for
training. Subtitles ("-sub") stand in the question; they say when, never what. A floor to know of: a mover needs
a free slot to go to, so from the slot that it starts in, direction can be guessed at 44%.

A new task is one more function in `SCENES` (objects with a timeline, and questions that name their
evidence), its name in `TASKS`, its words in `words`, and a number of clips in `training/config.py`.

What this file does not do: draw (`drawing.py`), write files (`data/batches.py`), know about patches or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stts_mini.toy.drawing import COLOURS, SHAPES, SLOT, Event, Object, Panel, Question, Scene

ACTIONS = {"move": "moves", "blink": "blinks", "grow": "grows", "spin": "spins"}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("0", "1", "2", "3")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SHORT_TASKS = ("attribute", "count", "action", "direction", "speed", "order")
LONG_TASKS = ("needle", "needle-sub", "event-count", "at-time", "at-time-sub", "before-after", "open")
SPLITS = ("train", "val", "test")
WORLD_VERSION = 6  # part of the data's fingerprint: raise it whenever a scene changes

SLOW = 0.65  # how far the slower of two moves goes while the faster goes a slot


# ------------------------------------------------------------------------------------ what happens


def _pick(rng: np.random.Generator, options, p=None):
    return options[int(rng.choice(len(options), p=p))]


def _place(rng: np.random.Generator, movers: int, still: int) -> tuple[list, list, list]:
    """Slots for `movers` objects (a slot and the direction of a free neighbour) and `still` ones, and
    the slots left over, in random order. Tries again until all fit."""
    while True:
        free, moving = list(range(9)), []
        for _ in range(movers):
            slot, direction = _pick(rng, free), _pick(rng, tuple(DIRECTIONS))
            dx, dy = DIRECTIONS[direction]
            row, column = divmod(slot, 3)
            target = (row + dy) * 3 + column + dx
            if not (0 <= row + dy < 3 and 0 <= column + dx < 3 and target in free):
                break
            free.remove(slot)
            free.remove(target)
            moving.append((slot, direction))
        if len(moving) == movers and len(free) >= still:
            rng.shuffle(free)
            return moving, free[:still], free[still:]


def _centre(rng: np.random.Generator, slot: int) -> tuple[float, float]:
    row, column = divmod(slot, 3)
    jitter = rng.uniform(-0.02, 0.02, 2)
    return (column + 0.5) * SLOT + jitter[0], (row + 0.5) * SLOT + jitter[1]


def _surroundings(rng: np.random.Generator, slots: list[int], panels: int) -> dict:
    """Panels in some of the free slots, a background, and in half of the scenes a slow pan."""
    chosen = [Panel(_pick(rng, ("flicker", "ripple", "drift")), s, int(rng.integers(1 << 31))) for s in slots[:panels]]
    pan = tuple(rng.uniform(-0.03, 0.03, 2)) if rng.random() < 0.5 else (0.0, 0.0)
    return dict(panels=tuple(chosen), pan=pan, texture_seed=int(rng.integers(1 << 31)))


def _shapes_with_a_count(rng: np.random.Generator, n: int) -> tuple[list[str], str, int]:
    """Shapes of n objects such that the number of a random shape among them is uniform over COUNTS."""
    asked = _pick(rng, SHAPES)
    count = int(rng.integers(len(COUNTS)))
    others = [s for s in SHAPES if s != asked]
    shapes = [asked] * count + [_pick(rng, others) for _ in range(n - count)]
    rng.shuffle(shapes)
    return shapes, asked, count


def _attribute_questions(objects: tuple[Object, ...]) -> list[Question]:
    """About every object that is unique by what is named."""
    seen = [(i, o.enter, o.leave) for i, o in enumerate(objects)]
    shapes, colours = [o.shape for o in objects], [o.colour for o in objects]
    questions = []
    for i, o in enumerate(objects):
        if colours.count(o.colour) == 1:
            text = f"what shape is the {o.colour} object ?"
            questions.append(Question("attribute", text, o.shape, SHAPES, (seen[i],)))
        if shapes.count(o.shape) == 1:
            text = f"what colour is the {o.shape} ?"
            questions.append(Question("attribute", text, o.colour, tuple(COLOURS), (seen[i],)))
    return questions


def _appearance_questions(objects: tuple[Object, ...], asked: str, count: int) -> list[Question]:
    """Attribute questions and one count."""
    seen, text = tuple((i, o.enter, o.leave) for i, o in enumerate(objects)), f"how many {asked} objects are there ?"
    return [*_attribute_questions(objects), Question("count", text, str(count), COUNTS, seen)]


def _details(objects: tuple[Object, ...], timed: bool = False) -> list[Question]:
    """Dense supervision for training, judged by nobody: in which row and column each object first stands and
    last stands; if `timed`, when it enters and when it starts to do something; if not, a tally of all shapes.
    One token an answer: a long description gives each of its facts too little of the loss to be learned."""
    seen = tuple((i, o.enter, o.leave) for i, o in enumerate(objects))
    questions = []

    def ask(i: int, task: str, text: str, answer: str) -> None:
        questions.append(Question(task, text, answer, (answer,), (seen[i],)))

    unique = [i for i, o in enumerate(objects) if sum(other.colour == o.colour for other in objects) == 1]
    for i, o in ((i, objects[i]) for i in unique):
        ask(i, "row", f"first row of {o.colour} ?", ROWS[int(o.y * 3)])
        ask(i, "column", f"first column of {o.colour} ?", COLUMNS[int(o.x * 3)])
        if timed:
            ask(i, "enter", f"when does {o.colour} enter ?", f"{o.enter:.1f}")
        for event in o.events:
            ask(i, "start", f"when does {o.colour} start ?", f"{event.start:.1f}")
            if event.kind == "move":
                ask(i, "row", f"last row of {o.colour} ?", ROWS[int((o.y + event.dy) * 3)])
                ask(i, "column", f"last column of {o.colour} ?", COLUMNS[int((o.x + event.dx) * 3)])
    if not timed:
        answer = " ".join(f"{shape} {sum(o.shape == shape for o in objects)}" for shape in SHAPES)
        questions.append(Question("tally", "tally", answer, (answer,), seen))
    return questions


def _happening_questions(rng: np.random.Generator, objects: list[Object]) -> list[Question]:
    """Action, direction, speed and order, of two objects that move (the first two) and one that acts."""
    during = [(i, o.events[0].start - 0.5, o.events[0].end) for i, o in enumerate(objects[:3])]
    actor = _pick(rng, (0, 2, 2, 2))  # so that all four actions are equally likely
    text, action = f"what does the {objects[actor].colour} object do ?", ACTIONS[objects[actor].events[0].kind]
    questions = [Question("action", text, action, tuple(ACTIONS.values()), (during[actor],))]
    for i, o in enumerate(objects[:2]):
        (direction,) = (name for name, (dx, dy) in DIRECTIONS.items() if dx * o.events[0].dx + dy * o.events[0].dy > 0)
        text = f"which way does the {o.colour} object move ?"
        questions.append(Question("direction", text, direction, tuple(DIRECTIONS), (during[i],)))
    pair = _shuffled(rng, *objects[:2])
    fast = max(pair, key=lambda o: abs(o.events[0].dx + o.events[0].dy))
    text, options = "which moves {} , {} or {} ?", (pair[0].colour, pair[1].colour)
    questions.append(Question("speed", text.format("faster", *options), fast.colour, options, tuple(during[:2])))
    if (starts := [o.events[0].start for o in pair])[0] != starts[1]:
        first = pair[int(np.argmin(starts))].colour
        questions.append(Question("order", text.format("first", *options), first, options, tuple(during[:2])))
    pairs = [(i, j) for i, a in enumerate(objects) for j, b in enumerate(objects) if a.enter < b.enter]
    if pairs:
        pair = _pick(rng, pairs)
        options = _shuffled(rng, *(objects[i].colour for i in pair))
        text, first = "which enters first , {} or {} ?".format(*options), objects[pair[0]].colour
        seen = tuple((int(i), objects[i].enter, objects[i].enter + 0.5) for i in pair)
        questions.append(Question("order", text, first, options, seen))
    return questions


def _moving_scene(rng: np.random.Generator, kind: str, duration: float, timeline: Callable) -> Scene:
    """Two objects that move, one of them not as far in the same time, one that blinks, grows or spins, and one
    that stands still. timeline(i) gives object i's (enter, start, length of its event, leave). The slower mover
    begins in the middle of its slot or ends in the middle of the next, by lot: no single frame tells who is slow."""
    shapes, asked, count = _shapes_with_a_count(rng, 4)
    colours = list(rng.permutation(list(COLOURS))[:4])
    moving, still, rest = _place(rng, 2, 2)
    fast, objects = int(rng.integers(2)), []
    # A circle cannot be seen to spin: these weights keep the three actions equally likely all the same.
    weights = (1 / 2, 1 / 2, 0) if shapes[2] == "circle" else (5 / 18, 5 / 18, 4 / 9)
    action = _pick(rng, ("blink", "grow", "spin"), weights)
    for i in range(4):
        enter, start, length, leave = (float(t) for t in timeline(i))
        slot, direction = moving[i] if i < 2 else (still[i - 2], None)
        x, y = _centre(rng, slot)
        events = (Event(action, start, start + length),) if i == 2 else ()
        if direction is not None:
            reach = SLOT if i == fast else SLOW * SLOT
            dx, dy = (reach * part for part in DIRECTIONS[direction])
            if i != fast and rng.random() < 0.5:
                x, y = x + dx * (1 - SLOW) / SLOW, y + dy * (1 - SLOW) / SLOW
            events = (Event("move", start, start + length, dx, dy),)
        objects.append(Object(shapes[i], str(colours[i]), x, y, enter, leave, events))
    questions = _appearance_questions(tuple(objects), asked, count) + _happening_questions(rng, objects)
    questions += _details(tuple(objects), timed=True)
    fps = 10.0 if kind == "short" else 4.0
    return Scene(kind, duration, fps, tuple(objects), **_surroundings(rng, rest, 2), questions=tuple(questions))


def _short(rng: np.random.Generator) -> Scene:
    """3.5 to 4 s, six tasks. Everything that enters stays."""
    enters, starts = rng.permutation([0.5, 0.5, 1.0, 1.0]), rng.permutation([1.5, 2.5])

    def timeline(i: int) -> tuple:
        """Movers move one after the other; the third acts in between."""
        return enters[i], starts[i] if i < 2 else _pick(rng, (1.5, 2.0)), 1.0 if i < 2 else 1.5, np.inf

    return _moving_scene(rng, "short", float(_pick(rng, (3.5, 4.0))), timeline)


def _brief(rng: np.random.Generator) -> Scene:
    """2.5 s to learn time from, judged by nobody: half of the objects are soon gone again. What is in view once
    tells its time plainly; what stays does not."""

    def timeline(i: int) -> tuple:
        """Each on its own."""
        enter = _pick(rng, (0.5, 1.0, 1.5) if i != 2 else (0.5, 1.0))
        start = enter + (0.5 if i == 2 else _pick(rng, (0.0, 0.5)))
        return enter, start, 0.5 if i < 2 else 1.0, _pick(rng, (start + (0.5 if i == 3 else 1.0), np.inf))

    return _moving_scene(rng, "brief", 2.5, timeline)


def _shuffled(rng: np.random.Generator, a, b) -> tuple:
    return (a, b) if rng.random() < 0.5 else (b, a)


def _watch(rng: np.random.Generator, shortest: int = 32, longest: int = 96) -> Scene:
    """Three objects that enter early and stay, one of which grows now and then; a fourth flashes up once, for
    1.5 to 6 s. All of it sooner in a clip of less than 32 s. The fourth may look like any other: who only sees the
    three knows nothing of it."""
    duration = float(rng.integers(2 * shortest, 2 * longest + 1)) / 2
    pace = min(duration / 32, 1.0)
    shapes = [_pick(rng, SHAPES) for _ in range(4)]
    colours = [*map(str, rng.permutation(list(COLOURS))[:3]), _pick(rng, tuple(COLOURS))]
    _, still, rest = _place(rng, 0, 4)
    length = float(rng.uniform(1.5, max(6.0 * pace, 2.0)))
    start = float(rng.uniform(8.0 * pace, duration - length))
    spans = [(float(rng.uniform(0.5, 6.0 * pace)), np.inf) for _ in range(3)] + [(start, start + length)]
    times = int(rng.integers(len(COUNTS)))
    growths = []
    for i in range(times):  # one in each part of the time after 7 s, and a pause after it
        part = (duration - 7.0 * pace) / times
        lasts = rng.uniform(1.5, min(5.0, 0.55 * part))
        begins = 7.0 * pace + i * part + rng.uniform(0, part - lasts - max(2.0 * pace, 1.4))
        growths.append(Event("grow", float(begins), float(begins + lasts)))
    objects = tuple(
        Object(shape, colour, *_centre(rng, slot), enter, leave, tuple(growths) if i == 0 else ())
        for i, (shape, colour, slot, (enter, leave)) in enumerate(zip(shapes, colours, still, spans, strict=True))
    )
    grower, needle, flash = objects[0], objects[3], ((3, start, start + length),)
    calm = [float(t) for t in rng.uniform(1.0, duration, 2) if not start <= t <= start + length]
    lines = sorted([(t, "calm") for t in calm] + [(start + length / 2, "look")])
    subtitles = " ".join(f"{t:.1f} {word} ," for t, word in lines)
    questions = [
        Question("needle", "what colour flashes ?", needle.colour, tuple(COLOURS), flash),
        Question("needle-sub", f"{subtitles} what colour flashes ?", needle.colour, tuple(COLOURS), flash),
        Question("needle", "what shape flashes ?", needle.shape, SHAPES, flash),
        Question("needle-sub", f"{subtitles} what shape flashes ?", needle.shape, SHAPES, flash),
        *(q for q in _attribute_questions(objects) if q.evidence[0][0] != 3),
        *(q for q in _details(objects) if q.task != "start"),
    ]
    text = f"how many times is {grower.colour} big ?"
    always = ((0, grower.enter, duration),)  # whether it grew or not: what is evidence must not tell the answer
    questions.append(Question("event-count", text, str(times), COUNTS, always))
    for t in (*(rng.uniform(e.start, e.end) for e in growths), *rng.uniform(7.0 * pace, duration, 2)):
        size = "big" if any(e.start <= t < e.end for e in growths) else "small"
        questions.append(Question("size", f"size of {grower.colour} at {t:.1f} ?", size, (size,), ((0, t, t),)))
    questions = list({q.text: q for q in questions}.values())
    return Scene("watch", duration, 2.0, objects, **_surroundings(rng, rest, 2), questions=tuple(questions))


def _parade(rng: np.random.Generator, shortest: int = 32, longest: int = 96) -> Scene:
    """Four objects, one after the other, each in view for 2 to 8 s and then gone; in a clip of less than 32 s,
    for 1.4 s or more."""
    duration = float(rng.integers(2 * shortest, 2 * longest + 1)) / 2
    pace = min(duration / 32, 1.0)
    shapes, colours = [_pick(rng, SHAPES) for _ in range(4)], [str(c) for c in rng.permutation(list(COLOURS))]
    _, still, rest = _place(rng, 0, 4)
    part, objects = (duration - 2.0 * pace) / 4, []
    for i in range(4):
        lasts = rng.uniform(max(2.0 * pace, 1.4), max(min(8.0, part - 2.0), 1.6))
        enter = float(2.0 * pace + i * part + rng.uniform(0, part - lasts - pace))
        objects.append(Object(shapes[i], colours[i], *_centre(rng, still[i]), enter, float(enter + lasts)))
    seen = [(i, o.enter, o.leave) for i, o in enumerate(objects)]
    subtitles = " ".join(f"{o.enter:.1f} one enters ," for o in objects)
    questions = []
    for i in rng.permutation(4):
        o = objects[i]
        text = f"which colour is in view at {rng.uniform(o.enter + 0.2, o.leave - 0.2):.1f} ?"
        questions.append(Question("at-time", text, o.colour, tuple(COLOURS), (seen[i],)))
        questions.append(Question("at-time-sub", f"{subtitles} {text}", o.colour, tuple(COLOURS), (seen[i],)))
    for i in rng.permutation(3):
        before, after = objects[i], objects[i + 1]
        others = tuple(c for c in COLOURS if c != before.colour)
        text = f"which colour enters right after {before.colour} leaves ?"
        questions.append(Question("before-after", text, after.colour, others, (seen[i], seen[i + 1])))
    order = colours[:4]
    wrong = {" ".join(rng.permutation(order)) for _ in range(12)} - {" ".join(order)}
    options = (" ".join(order), *rng.permutation(sorted(wrong))[:3].tolist())
    questions.append(Question("open", "which colours enter , in order ?", options[0], options, tuple(seen)))
    for i, o in enumerate(objects):
        text = f"what shape is the {o.colour} object ?"
        questions.append(Question("attribute", text, o.shape, SHAPES, (seen[i],)))
    questions += _details(tuple(objects))
    return Scene("parade", duration, 2.0, tuple(objects), **_surroundings(rng, rest, 2), questions=tuple(questions))


def _image(rng: np.random.Generator) -> Scene:
    """One frame with four objects in it: attribute and count."""
    shapes, asked, count = _shapes_with_a_count(rng, 4)
    colours = list(rng.permutation(list(COLOURS))[:4])
    _, still, rest = _place(rng, 0, 4)
    parts = zip(shapes, colours, still, strict=True)
    objects = tuple(Object(shape, str(colour), *_centre(rng, slot)) for shape, colour, slot in parts)
    questions = tuple(_appearance_questions(objects, asked, count) + _details(objects))
    return Scene("image", 0.0, 4.0, objects, **_surroundings(rng, rest, 2), questions=questions)


def _glance(rng: np.random.Generator) -> Scene:
    """A watch or a parade of 12 to 16 s, judged by nobody: short enough that a dozen frames miss nothing."""
    return replace(_pick(rng, (_watch, _parade))(rng, 12, 16), kind="glance")


SCENES = {
    "short": _short, "watch": _watch, "parade": _parade, "image": _image, "brief": _brief, "glance": _glance,
}  # fmt: skip
TASKS = {  # what a kind is judged by
    "short": SHORT_TASKS, "watch": LONG_TASKS[:3], "parade": LONG_TASKS[3:], "image": ("attribute", "count"),
    "brief": (), "glance": (),
}  # fmt: skip
GENERATED = ("open",)  # judged by what the model says; all others by their options


def make_scene(split: str, kind: str, seed: int) -> Scene:
    """The scene with this seed. Splits never share a seed. Raises ValueError for an unknown name.

    >>> scene = make_scene("test", "image", 0)
    >>> len(scene.objects), scene.questions[0].task, scene == make_scene("test", "image", 0)
    (4, 'attribute', True)
    """
    if split not in SPLITS or kind not in SCENES:
        raise ValueError(f"split {split!r}, kind {kind!r}: know {', '.join(SPLITS)} and {', '.join(SCENES)}")
    return SCENES[kind](np.random.default_rng((WORLD_VERSION, SPLITS.index(split), tuple(SCENES).index(kind), seed)))


def words() -> list[str]:
    """Every word that a question, an option or an answer can hold, in a fixed order."""
    spoken = """what which how many when does do is are the there way first last row column of object objects
        colour shape move moves flashes faster enter enters start or ? , tally""".split()  # noqa: SIM905
    long = "times in view at right after leaves colours order size big small calm look one".split()  # noqa: SIM905
    named = [*COLOURS, *SHAPES, *ACTIONS.values(), *DIRECTIONS, *ROWS, *COLUMNS, *COUNTS, "4", *long]
    return list(dict.fromkeys([*spoken, *named]))
