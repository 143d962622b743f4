"""The pages of docs/ say what the code says: generated ones are fresh, links lead somewhere, nothing is missing."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    """A script of the repository, imported by its place."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make, trust, keep = script("docs/make.py"), script("docs/trust.py"), script("figures/studies/keep.py")


@pytest.mark.parametrize("name", make.PAGES)
def test_generated_pages_are_fresh(name: str):
    """Otherwise: python docs/make.py."""
    assert (ROOT / "docs" / name).read_text("utf-8") == make.PAGES[name]()


def test_the_page_of_bad_input_and_faults_is_fresh_and_long():
    """Otherwise: python docs/trust.py. Every test that it names is there."""
    page = (ROOT / "docs" / "trust.md").read_text("utf-8")
    assert page == trust.page()
    assert int(re.findall(r"Bad input: (\d+) cases", page)[0]) >= 80 and len(trust.FAULTS) >= 12
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [test for _, _, test in trust.FAULTS if f"def {test}(" not in tests] == []


def test_every_statistic_says_when_it_misleads():
    assert set(make.MISLEADS) == {*STATISTICS, *PAIRS}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["legal", "intents", "quick"])
def test_pages_of_studies_have_the_numbers_of_their_tables(name: str):
    folder = ROOT / "figures" / "studies" / name
    assert (folder / "README.md").read_text("utf-8") == keep.readme(folder)
    if name == "legal":
        table = keep.arms_table(json.loads((folder / "summary.json").read_text("utf-8")))
        assert table in (ROOT / "README.md").read_text("utf-8")
