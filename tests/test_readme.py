"""The README says what is there."""

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


@pytest.mark.parametrize("page", ["README.md", "tutorials/README.md", "tutorials/fork_me.md", "tests/README.md"])
def test_no_link_leads_nowhere(page):
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!http|#)([^)#]+)", prose)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert links and not missing
