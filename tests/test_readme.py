"""The README says what is there."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = {
    path: int(lines) for path, lines in re.findall(r"^\| \[[\w.]+\]\((stts_mini/\w+\.py)\) \| (\d+) \|", README, re.M)
}


def test_the_map_has_every_module_once_and_its_length():
    """Within ten lines: whoever changes more says so."""
    modules = {f"stts_mini/{p.name}": p for p in (ROOT / "stts_mini").glob("*.py") if p.name != "__init__.py"}
    assert MAP.keys() == modules.keys()
    lines = {name: len(path.read_text().splitlines()) for name, path in modules.items()}
    wrong = {name: lines[name] for name, said in MAP.items() if abs(said - lines[name]) > 10}
    assert not wrong, f"README.md has other lengths than {wrong}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "tutorials/README.md",
        "tutorials/fork_me.md",
        "tests/README.md",
        "stts_mini/lab/SPEED.md",
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
    speed = (ROOT / "stts_mini" / "lab" / "SPEED.md").read_text()
    told = [row for row in report["speed"] if (row["videos"], row["frames"]) in ((2, 64), (1, 256)) and row["k"] > 0]
    assert len(told) == 2 * 2 * 4 and f"commit {report['commit']}" in speed
    for row in told:
        ratio = f"{row['speedup']:.2f} / {row['limit']:.2f}"
        assert f"{ratio} = {row['reached']:.2f}" in speed
        assert row["k"] not in (0.5, 0.8) or ratio in README
