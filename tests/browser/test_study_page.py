"""The page of a study in a browser: offline, sortable, readable on a telephone, hostile names as text."""

from pathlib import Path

import pytest

from attnlens.show.study import write_study
from tests.browser.conftest import Opening, serious
from tests.show.studied import HOSTILE, made


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("page") / "study"
    return write_study(made(folder, failed=True)).as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_it_opens_offline_and_keeps_nobody_out(opening: Opening, address: str, width: int, scheme: str):
    with opening(address, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        assert page.inner_text("h1") == "A study"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#arms tbody tr").count() == 3
        assert page.locator("#arms tbody td").filter(has_text=HOSTILE).count() == 1, "a name, no markup"
        assert serious(page) == []


def test_arms_sort_by_quality(opening: Opening, address: str):
    with opening(address) as page:
        column = page.locator("#arms th button", has_text="test accuracy")
        column.click()
        one = page.locator("#arms tbody tr td:first-child").all_inner_texts()
        column.click()
        other = page.locator("#arms tbody tr td:first-child").all_inner_texts()
        assert {one[0], other[0]} == {HOSTILE, "ALF"} and one == other[::-1]


def test_a_ladder_opens_by_key(opening: Opening, address: str):
    with opening(address) as page:
        summary = page.locator("#focus summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator("#focus .rung").first.is_visible()
