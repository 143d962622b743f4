"""Every model type of transformers' text mappings: exact, or refused with the reason, as docs/architectures.md says."""

import re
from collections import Counter
from pathlib import Path

import pytest

from docs.architectures import ORDER, ROUTES
from tests.zoo import model_types, outcome

ROOT = Path(__file__).parents[2]
TYPES = list(model_types())
# What has no softmax attention over tokens: nothing to measure, whatever we do.
WITHOUT = {"falcon_mamba", "fnet", "mamba", "mamba2", "rwkv", "xlstm", "yoso", "reformer"}


def documented() -> dict[str, list[str]]:
    """The rows of the page by model type: mapping, outcome, route, …, reason."""
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[1:] for row in rows if row[2] in ORDER}


@pytest.mark.parametrize(("name", "task"), TYPES, ids=[name for name, _ in TYPES])
def test_the_page_says_what_became_of_it(name: str, task: str):
    found, row = outcome(name, task), documented()[name]
    assert found.status != "failed", found.reason
    assert [found.task, found.status, ROUTES[found.route]] == row[:3], found.reason
    assert bool(found.reason) or found.status == "exact"


def test_none_fails_and_nine_in_ten_with_softmax_attention_are_exact():
    rows = documented()
    assert rows.keys() == {name for name, _ in TYPES}
    counts = Counter(row[1] for name, row in rows.items() if name not in WITHOUT)
    assert counts["failed"] == 0 and counts["exact"] >= 0.9 * (counts["exact"] + counts["refused"])


def test_the_readme_gives_the_counts():
    page, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/architectures.md", "README.md"))
    counts = re.search(r"Of (\d+) types: (.*?)\.", page)
    assert counts and f"{counts[1]} model types: {counts[2]}" in readme
