"""The README says what is there."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROW = re.compile(r"^\| \[[\w./]+\]\((stts_mini/[\w./]+)\) \| (\d+) \|", re.MULTILINE)
MAP = {path: int(lines) for path, lines in ROW.findall(README)}


def lines_of(path):
    """Of a module, or of the modules that lie in a room itself."""
    files = [path] if path.is_file() else path.glob("*.py")
    return sum(len(file.read_text().splitlines()) for file in files)


def test_the_map_has_every_module_and_room_once_and_its_length():
    """Within a twentieth: whoever changes more says so."""
    shelf = [p for p in (ROOT / "stts_mini").glob("*.py") if p.name != "__init__.py"]
    rooms = {p.parent for p in (ROOT / "stts_mini").rglob("*.py")} - {ROOT / "stts_mini"}
    lines = {str(path.relative_to(ROOT)): lines_of(path) for path in (*shelf, *rooms)}
    assert MAP.keys() == lines.keys()
    wrong = {name: lines[name] for name, said in MAP.items() if abs(said - lines[name]) > max(lines[name] / 20, 10)}
    assert not wrong, f"README.md has other lengths than {wrong}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "tutorials/README.md",
        "tutorials/fork_me.md",
        "tests/README.md",
        "stts_mini/lab/speed/SPEED.md",
        "tutorials/results/FINDINGS.md",
    ],
)
def test_no_link_leads_nowhere(page):
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!http|#)([^)#]+)", prose)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert links and not missing


def test_speeds_are_those_that_were_measured():
    report = json.loads((ROOT / "tutorials" / "results" / "bench.json").read_text())
    speed = (ROOT / "stts_mini" / "lab" / "speed" / "SPEED.md").read_text()
    told = [row for row in report["speed"] if (row["videos"], row["frames"]) in ((2, 64), (1, 256)) and row["k"] > 0]
    assert len(told) == 2 * 2 * 4 and f"commit {report['commit']}" in speed
    for row in told:
        ratio = f"{row['speedup']:.2f} / {row['limit']:.2f}"
        assert f"{ratio} = {row['reached']:.2f}" in speed
        assert row["k"] not in (0.5, 0.8) or ratio in README
