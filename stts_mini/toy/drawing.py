"""How the toy world looks: scenes to pixels, and the pixels that an answer depends on.

    render(scene, times, size)               (T, H, W, 3) uint8
    evidence(scene, questions, times, size)  (T, H, W) bool: the pixels that the answers depend on

Legend
    lengths and places in units of the picture's side, y downwards · times in seconds · T times
    H = W = size in pixels · slots: the 3 × 3 parts of the picture, row by row

What this file does not do: decide what happens and what is asked (`world.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 185, 70),
    "blue": (45, 85, 235),
    "yellow": (240, 220, 50),
    "purple": (165, 60, 200),
    "white": (245, 245, 245),
}
# A shape's signed distance from (u, v) to its outline, in its own axes (v points down) and with radius r.
DISTANCES = {
    "circle": lambda u, v, r: np.hypot(u, v) - r,
    "square": lambda u, v, r: np.maximum(abs(u), abs(v)) - 0.85 * r,
    "triangle": lambda u, v, r: np.maximum(0.866 * abs(u) - 0.5 * v, v) - 0.55 * r,  # a tip at the top
    "cross": lambda u, v, r: (  # two bars
        np.minimum(np.maximum(abs(u), abs(v) - 0.65 * r), np.maximum(abs(v), abs(u) - 0.65 * r)) - 0.3 * r
    ),
}
SHAPES = tuple(DISTANCES)
SLOT = 1 / 3
RADIUS = 0.145  # of an object: 7 pixels of 48
BLINK = 0.5  # seconds that an object is dim, then bright
DIM = 0.4  # opacity while it is dim


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
    """A coloured shape with its centre, the time it is in view, and what it does in that time."""

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
    """`options` are all answers that the text allows, including the right one. `evidence`: the index of each object
    that must be seen, from when, and until when."""

    task: str
    text: str
    answer: str
    options: tuple[str, ...]
    evidence: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Scene:
    """Everything that defines a clip. `pan`: the background's drift in sides per second."""

    kind: str
    duration: float
    fps: float
    objects: tuple[Object, ...]
    panels: tuple[Panel, ...]
    pan: tuple[float, float]
    texture_seed: int
    questions: tuple[Question, ...] = ()

    @property
    def times(self) -> np.ndarray:
        """Presentation times of the clip's own frames."""
        return np.arange(round(self.duration * self.fps) + 1) / self.fps


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
    """How much of every pixel an object covers, 0 to 1, from its signed distance. Returns slices of the
    box that it touches at any time, its cover in the box (T, rows, columns), and its opacity (T, 1, 1)."""
    track = _track(thing, times)
    reach = RADIUS * track[3].max() * 1.5 + 1 / size
    ends = [(int(max((a.min() - reach) * size, 0)), int((a.max() + reach) * size) + 1) for a in track[1:3]]
    columns, rows = (slice(low, min(high, size)) for low, high in ends)
    opacity, x, y, scale, angle = (a[:, None, None] for a in track)
    grid = (np.arange(size) + 0.5) / size
    dx, dy = grid[None, None, columns] - x, grid[None, rows, None] - y  # (T, 1, W), (T, H, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # the object's own axes, (T, H, W)
    distance = DISTANCES[thing.shape](u, v, RADIUS * scale)
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
    """What a distractor shows, (T, side, side, 1): grey patterns that change and mean nothing."""
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
