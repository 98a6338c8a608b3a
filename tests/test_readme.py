"""The README and the pages behind it say what is there."""

import json
import re
from pathlib import Path

import pytest

from stts_mini.lab.paper.tables import anchor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROW = re.compile(r"^\| \[[\w./]+\]\((stts_mini/[\w./]+)\) \| (\d+) \|", re.MULTILINE)
MAP = {path: int(lines) for path, lines in ROW.findall(README)}
FOLDERS = ("tutorials", "tests", "stts_mini")
PAGES = [ROOT / "README.md", *(p for f in FOLDERS for end in ("md", "ipynb") for p in (ROOT / f).rglob(f"*.{end}"))]


def lines_of(path):
    """Of a module, or of the modules that lie in a room itself."""
    files = [path] if path.is_file() else path.glob("*.py")
    return sum(len(file.read_text().splitlines()) for file in files)


def text_of(page):
    """What a page says, of a notebook its Markdown, without code blocks."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_the_map_has_every_module_and_room_once_and_its_length():
    """Within a twentieth: whoever changes more says so."""
    shelf = [p for p in (ROOT / "stts_mini").glob("*.py") if p.name != "__init__.py"]
    rooms = {p.parent for p in (ROOT / "stts_mini").rglob("*.py")} - {ROOT / "stts_mini"}
    lines = {str(path.relative_to(ROOT)): lines_of(path) for path in (*shelf, *rooms)}
    assert MAP.keys() == lines.keys()
    wrong = {name: lines[name] for name, said in MAP.items() if abs(said - lines[name]) > max(lines[name] / 20, 10)}
    assert not wrong, f"README.md has other lengths than {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leads_nowhere(page):
    """Files, and headings of Markdown files."""
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text_of(page)):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading and target.suffix == ".md":
            assert heading in [anchor(t) for t in re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)], link


def test_every_command_is_in_the_list():
    """Every module that is a command of its own, and every preset."""
    page = (ROOT / "tutorials" / "README.md").read_text()
    commands = page.split("## All commands")[1].split("\n## ")[0]
    for file in (ROOT / "stts_mini").rglob("*.py"):
        if re.search(r'^if __name__ == "__main__":', file.read_text(), re.MULTILINE):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if file.name == "__main__.py" else parts)
            assert f"python -m {name}" in commands, name


def test_speeds_are_those_that_were_measured():
    report = json.loads((ROOT / "tutorials" / "results" / "bench.json").read_text())
    speed = (ROOT / "stts_mini" / "lab" / "speed" / "SPEED.md").read_text()
    said = [row for row in report["speed"] if (row["videos"], row["frames"]) in ((2, 64), (1, 256)) and row["k"] > 0]
    assert len(said) == 2 * 2 * 4 and f"commit {report['commit']}" in speed
    for row in said:
        assert f"{row['speedup']:.2f} / {row['limit']:.2f} = {row['reached']:.2f}" in speed
        if (row["frames"], row["k"]) == (256, 0.5):
            assert f"{row['speedup']:.2f} times" in README
