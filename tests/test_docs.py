"""The pages of docs/ say what the code says: generated ones are fresh, links lead somewhere, nothing is missing."""

import importlib.util
import re
from pathlib import Path

import pytest

from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "make.py")
assert spec is not None and spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("name", make.PAGES)
def test_generated_pages_are_fresh(name: str):
    """Otherwise: python docs/make.py."""
    assert (ROOT / "docs" / name).read_text("utf-8") == make.PAGES[name]()


def test_every_statistic_says_when_it_misleads():
    assert set(make.MISLEADS) == {*STATISTICS, *PAIRS}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
