"""The toy video world: scenes, their pictures, their questions and their ground truth.

A scene is a pure function of (split, kind, seed). Coloured objects enter, move, blink, grow, spin and
leave before a textured background that is still or pans slowly; panels flicker, ripple and drift and
mean nothing (whoever keeps what changes keeps them). Objects enter *after* the first frame, which
pruning never touches, so that what an answer needs must be chosen, not given.

    make_scene("train", "short", 7)          a Scene with its questions
    render(scene, times, size)               (T, H, W, 3) uint8
    evidence(scene, questions, times, size)  (T, H, W) bool: the pixels that the answers depend on

Legend: lengths and places in units of the picture's side, y downwards; times in seconds; slots are
the 3 × 3 parts of the picture, row by row; every object and every panel has slots of its own (what
grows or spins reaches a little beyond them).

Beside the tasks, every scene has questions about where and when: dense supervision for training.

Kinds: `short` (six tasks), `needle` (long), `image` (one frame, a control), `brief` (to learn time from).
Another long task is one more function in `SCENES` (objects with a timeline, and questions that name their
evidence), its name in `TASKS`, its words in `words`, and a number of clips in `config.py`.

What this file does not do: write files (`data.py`), know about patches or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 185, 70),
    "blue": (45, 85, 235),
    "yellow": (240, 220, 50),
    "purple": (165, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
ACTIONS = {"move": "moves", "blink": "blinks", "grow": "grows", "spin": "spins"}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("0", "1", "2", "3")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SHORT_TASKS = ("attribute", "count", "action", "direction", "speed", "order")
SPLITS = ("train", "val", "test")
WORLD_VERSION = 4  # part of the data's fingerprint: raise it whenever a scene changes

SLOT = 1 / 3
RADIUS = 0.145  # of an object: 7 pixels of 48
SLOW = 0.65  # how far the slower of two moves goes while the faster goes a slot
BLINK = 0.5  # seconds dim, seconds bright
DIM = 0.4  # opacity meanwhile


@dataclass(frozen=True)
class Event:
    """Something an object does from `start` to `end`: move (by dx, dy), blink, grow or spin."""

    kind: str
    start: float
    end: float
    dx: float = 0.0
    dy: float = 0.0


@dataclass(frozen=True)
class Object:
    """A coloured shape with its centre, the time it is in view, and what it does meanwhile."""

    shape: str
    colour: str
    x: float
    y: float
    enter: float = 0.0
    leave: float = np.inf
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A distractor that fills one slot: "flicker", "ripple" or "drift"."""

    kind: str
    slot: int
    seed: int


@dataclass(frozen=True)
class Question:
    """`options` hold every answer that the text allows, the right one included. `evidence`: which object
    (its index) must be seen, from when to when."""

    task: str
    text: str
    answer: str
    options: tuple[str, ...]
    evidence: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Scene:
    """All there is to know about a clip. `pan`: the background's drift in sides per second."""

    kind: str
    duration: float
    fps: float
    objects: tuple[Object, ...]
    panels: tuple[Panel, ...]
    pan: tuple[float, float]
    texture_seed: int
    questions: tuple[Question, ...] = field(default=())

    @property
    def times(self) -> np.ndarray:
        """Presentation times of the clip's own frames."""
        return np.arange(round(self.duration * self.fps) + 1) / self.fps


# ------------------------------------------------------------------------------------ what is seen


def _track(thing: Object, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Opacity (0 = not in view), centre x, y, size (1 = normal) and angle of an object: (T,) each."""
    opacity = ((times >= thing.enter) & (times < thing.leave)).astype(float)
    x, y = np.full(len(times), thing.x), np.full(len(times), thing.y)
    size, angle = np.ones(len(times)), np.zeros(len(times))
    for event in thing.events:
        during = (times >= event.start) & (times < event.end)
        done = np.clip((times - event.start) / (event.end - event.start), 0, 1)
        if event.kind == "move":
            x, y = x + done * event.dx, y + done * event.dy
        elif event.kind == "blink":
            opacity[during & ((times - event.start) // BLINK % 2 == 0)] *= DIM
        elif event.kind == "grow":
            size = np.where(during, 1.4, size)
        elif event.kind == "spin":
            angle = angle + np.pi / 2 * np.clip(times - event.start, 0, event.end - event.start)
    return opacity, x, y, size, angle


def _silhouette(thing: Object, times: np.ndarray, size: int) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray]:
    """How much of every pixel an object covers, 0 to 1, from its signed distance: the box of the picture
    that it ever touches, (all times, rows, columns), its cover there, (T, rows, columns), and its opacity,
    (T, 1, 1)."""
    track = _track(thing, times)
    reach = RADIUS * track[3].max() * 1.5 + 1 / size
    ends = [(int(max((a.min() - reach) * size, 0)), int((a.max() + reach) * size) + 1) for a in track[1:3]]
    columns, rows = (slice(low, min(high, size)) for low, high in ends)
    opacity, x, y, scale, angle = (a[:, None, None] for a in track)
    grid = (np.arange(size) + 0.5) / size
    dx, dy = grid[None, None, columns] - x, grid[None, rows, None] - y  # (T, 1, W), (T, H, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # the object's own axes, (T, H, W)
    r = RADIUS * scale
    if thing.shape == "circle":
        distance = np.hypot(u, v) - r
    elif thing.shape == "square":
        distance = np.maximum(abs(u), abs(v)) - 0.85 * r
    elif thing.shape == "triangle":
        distance = np.maximum(0.866 * abs(u) - 0.5 * v, v) - 0.55 * r  # v points down: a tip at the top
    else:  # cross: two bars
        a, b = abs(u), abs(v)
        distance = np.minimum(np.maximum(a, b - 0.65 * r), np.maximum(b, a - 0.65 * r)) - 0.3 * r
    return (slice(None), rows, columns), np.clip(0.5 - distance * size, 0, 1), opacity


def _background(scene: Scene, times: np.ndarray, size: int) -> np.ndarray:
    """A smooth grey texture, (T or 1, H, W, 1): a few waves, moved by the pan."""
    rng = np.random.default_rng(scene.texture_seed)
    if scene.pan == (0.0, 0.0):
        times = times[:1]
    grid = (np.arange(size) + 0.5) / size
    t = times[:, None, None]
    x, y = grid[None, None, :] + scene.pan[0] * t, grid[None, :, None] + scene.pan[1] * t
    texture = np.full((len(times), size, size), 95.0)
    for wave_x, wave_y, phase, height in rng.uniform((-5, -5, 0, 4), (5, 5, 1, 12), (5, 4)):
        # cos(a + b) as the real part of e^ia · e^ib: an outer product, much cheaper than H·W cosines
        along_x, along_y = np.exp(2j * np.pi * wave_x * x), np.exp(2j * np.pi * (wave_y * y + phase))
        texture += height * (along_x * along_y).real
    return texture[..., None]


def _panel(panel: Panel, times: np.ndarray, side: int) -> np.ndarray:
    """What a distractor shows, (T, side, side, 1): grey, busy, and without meaning."""
    grid = (np.arange(side) + 0.5) / side
    rng = np.random.default_rng(panel.seed)
    if panel.kind == "ripple":
        cx, cy, speed, waves = rng.uniform((0.2, 0.2, 1.1, 1.5), (0.8, 0.8, 1.9, 3.0))
        distance = np.hypot(grid[None, None, :] - cx, grid[None, :, None] - cy)
        grey = 110 + 70 * np.cos(2 * np.pi * (waves * distance - speed * times[:, None, None]))
    else:
        steps = np.floor(times * (4 if panel.kind == "flicker" else 2) + 1e-6).astype(int)
        tiles = rng.uniform(30, 200, (max(steps.max() + 1, 4), 4, 4))  # one row of 4 × 4 tiles a step
        drifting = panel.kind == "drift"  # the same tiles, moving sideways
        tiles = np.stack([np.roll(tiles[0], s, axis=1) if drifting else tiles[s] for s in steps])
        pixel = np.arange(side) * 4 // side
        grey = tiles[:, pixel][:, :, pixel]
    return grey[..., None]


def render(scene: Scene, times: np.ndarray, size: int) -> np.ndarray:
    """The scene at each time: (T, size, size, 3) uint8, RGB."""
    times = np.asarray(times, float)
    frames = np.broadcast_to(_background(scene, times, size), (len(times), size, size, 3)).copy()
    for panel in scene.panels:
        top, left = (round(part * SLOT * size) for part in divmod(panel.slot, 3))
        side = round(SLOT * size)
        frames[:, top : top + side, left : left + side] = _panel(panel, times, side)
    for thing in scene.objects:
        box, cover, opacity = _silhouette(thing, times, size)
        frames[box] += (cover * opacity)[..., None] * (np.array(COLOURS[thing.colour], float) - frames[box])
    return frames.clip(0, 255).round().astype(np.uint8)


def evidence(scene: Scene, questions: tuple[Question, ...], times: np.ndarray, size: int) -> np.ndarray:
    """The pixels that the questions' answers depend on, frame 0 excluded: (T, size, size) bool."""
    times = np.asarray(times, float)
    mask = np.zeros((len(times), size, size), bool)
    for index, start, end in {part for question in questions for part in question.evidence}:
        during = (times >= start) & (times <= end) & (times > 0)
        box, cover, opacity = _silhouette(scene.objects[index], times, size)
        mask[box] |= (cover > 0.5) & (opacity > 0) & during[:, None, None]
    return mask


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


def _appearance_questions(objects: tuple[Object, ...], asked: str, count: int) -> list[Question]:
    """Attribute questions about every object that is unique by what is named, and one count."""
    seen = [(i, o.enter, o.leave) for i, o in enumerate(objects)]
    shapes = [o.shape for o in objects]
    questions = []
    for i, o in enumerate(objects):
        questions.append(Question("attribute", f"what shape is the {o.colour} object ?", o.shape, SHAPES, (seen[i],)))
        if shapes.count(o.shape) == 1:
            text = f"what colour is the {o.shape} ?"
            questions.append(Question("attribute", text, o.colour, tuple(COLOURS), (seen[i],)))
    text = f"how many {asked} objects are there ?"
    return [*questions, Question("count", text, str(count), COUNTS, tuple(seen))]


def _details(objects: tuple[Object, ...], timed: bool = False) -> list[Question]:
    """Dense supervision for training, judged by nobody: in which row and column each object first stands and
    last stands; if `timed`, when it enters and when it starts to do something; if not, a tally of all shapes.
    One token an answer: a long description gives each of its facts too little of the loss to be learned."""
    seen = tuple((i, o.enter, o.leave) for i, o in enumerate(objects))
    questions = []

    def ask(i: int, task: str, text: str, answer: str) -> None:
        questions.append(Question(task, text, answer, (answer,), (seen[i],)))

    for i, o in enumerate(objects):
        ask(i, "row", f"first row of {o.colour} ?", ROWS[int(o.y * 3)])
        ask(i, "column", f"first column of {o.colour} ?", COLUMNS[int(o.x * 3)])
        if timed:
            ask(i, "enter", f"when does {o.colour} enter ?", f"{o.enter:.1f}")
        for event in o.events:
            ask(i, "start", f"when does {o.colour} start ?", f"{event.start:.1f}")
            if np.hypot(event.dx, event.dy) > 0.6 * SLOT:  # a smaller one ends between two slots, or in the same
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
    that stands still. timeline(i) gives object i's (enter, start, length of its event, leave)."""
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
            events = (Event("move", start, start + length, *(reach * part for part in DIRECTIONS[direction])),)
        objects.append(Object(shapes[i], str(colours[i]), x, y, enter, leave, events))
    questions = _appearance_questions(tuple(objects), asked, count) + _happening_questions(rng, objects)
    questions += _details(tuple(objects), timed=True)
    return Scene(kind, duration, 4.0, tuple(objects), **_surroundings(rng, rest, 2), questions=tuple(questions))


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


def _needle(rng: np.random.Generator) -> Scene:
    """32 to 40 s: three objects that enter early and stay, and one that flashes up once for 1.5 to 6 s."""
    duration = float(rng.integers(64, 81)) / 2
    shapes, asked, count = _shapes_with_a_count(rng, 4)
    colours = list(rng.permutation(list(COLOURS))[:4])
    _, still, rest = _place(rng, 0, 4)
    length = rng.uniform(1.5, 6.0)
    start = rng.uniform(8.0, duration - length)
    spans = [(rng.uniform(0.5, 6.0), np.inf) for _ in range(3)] + [(start, start + length)]
    objects = tuple(
        Object(shape, str(colour), *_centre(rng, slot), enter=float(enter), leave=float(leave))
        for shape, colour, slot, (enter, leave) in zip(shapes, colours, still, spans, strict=True)
    )
    needle, seen = objects[3], ((3, start, start + length),)
    questions = [
        Question("needle", "what colour flashes ?", needle.colour, tuple(COLOURS), seen),
        Question("needle", "what shape flashes ?", needle.shape, SHAPES, seen),
        *(q for q in _appearance_questions(objects, asked, count) if q.evidence[0][0] != 3 and q.task == "attribute"),
        *_details(objects),
    ]
    return Scene("needle", duration, 2.0, objects, **_surroundings(rng, rest, 2), questions=tuple(questions))


def _image(rng: np.random.Generator) -> Scene:
    """One frame with four objects in it: attribute and count."""
    shapes, asked, count = _shapes_with_a_count(rng, 4)
    colours = list(rng.permutation(list(COLOURS))[:4])
    _, still, rest = _place(rng, 0, 4)
    parts = zip(shapes, colours, still, strict=True)
    objects = tuple(Object(shape, str(colour), *_centre(rng, slot)) for shape, colour, slot in parts)
    questions = tuple(_appearance_questions(objects, asked, count) + _details(objects))
    return Scene("image", 0.0, 4.0, objects, **_surroundings(rng, rest, 2), questions=questions)


SCENES = {"short": _short, "needle": _needle, "image": _image, "brief": _brief}
TASKS = {"short": SHORT_TASKS, "needle": ("needle",), "image": ("attribute", "count"), "brief": ()}  # judged by these


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
    named = [*COLOURS, *SHAPES, *ACTIONS.values(), *DIRECTIONS, *ROWS, *COLUMNS, *COUNTS, "4"]
    return list(dict.fromkeys([*spoken, *named]))
