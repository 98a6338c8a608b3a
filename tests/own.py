"""Clips of one's own, written small, for tests."""

import json
from pathlib import Path

from stts_mini.data.video import write_video
from stts_mini.toy import drawing, world


def own_line(folder: Path, seed: int) -> dict:
    """A clip of the world as anybody's video: a line with a question that has options, and one that has none."""
    scene = world.make_scene("train", "short", seed)
    write_video(folder / f"{seed}.mp4", drawing.render(scene, scene.times, 48), scene.fps)
    q = scene.questions[0]
    asked = dict(question=q.text, answer=q.answer, options=list(q.options))
    return dict(video=f"{seed}.mp4", qa=[asked, dict(question="say red", answer="red")])


def write_own_clips(folder: Path, count: int) -> Path:
    """`count` videos and their lines; returns the file of lines."""
    folder.mkdir()
    lines = [json.dumps(own_line(folder, seed)) for seed in range(count)]
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "clips.jsonl"
