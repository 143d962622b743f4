"""A report on texts, labels, documents, terms and checkpoints named by an enemy: shown as text, everywhere."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from attnlens.show.run import ReportOptions, run_report
from tests.browser.conftest import Opening
from tests.conftest import Tuning

# A folder's name holds no slash; all else may be in it.
NAME = '"><img src=x onerror=document.title="owned">{{7*7}}$\\input{x}%&_#\x1b[31m\u202e'
TEXT = (
    '</script><script>document.title="owned"</script> <img src="https://example.org/x.png"> '
    "<svg onload=alert(1)> =HYPERLINK(1) \\write18{rm} $x$ {{7*7}} <style>@import url(https://example.org)</style> "
    "the tenant pays <iframe src=https://example.org></iframe>"
)


@pytest.fixture(scope="module")
def folder(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    shutil.copytree(tuning.tuned, place / NAME)
    rows = []
    for number in range(12):
        text = f"{'The landlord agrees. ' * (number % 4)}{TEXT}"
        start = text.index("tenant")
        spans = [{"start": start, "end": start + 6, "label": NAME}]
        rows.append({"text": text, "label": TEXT[:60], "document": f"={NAME}{number % 6}", "spans": spans, "id": NAME})
        rows[-1]["id"] += str(number)
    data = place / f"=data{NAME}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = place / "report"
    run_report([tuning.base, place / NAME], ReportOptions(data=data, output=output, salience=("spans",)))
    return output


def test_the_page_runs_nothing_and_asks_for_nothing(opening: Opening, folder: Path):
    """The one request is the page itself, and nothing is said in the console."""
    with opening((folder / "report.html").as_uri()) as page:
        assert page.title() != "owned" and "<img src=x" in page.inner_text("body")
        assert page.locator("iframe, img[src=x], script[src], link[rel=stylesheet]").count() == 0
        page.wait_for_selector("#words[data-ready]")
        page.hover("#base-text .w >> nth=2")
        assert page.title() != "owned" and "document.title" in page.inner_text("#base-text")


def test_no_cell_of_a_table_is_a_formula(folder: Path):
    tables = [
        path for path in folder.rglob("*.csv") if path.parent != folder
    ]  # those the library reads stay as they are
    assert len(tables) > 9 and any("'=" in path.read_text(encoding="utf-8") for path in tables)
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.reader(file):
                for cell in row:
                    assert not cell.startswith(("=", "@", "\t")) and (cell[:1] not in "+-" or is_number(cell)), path


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == ""
    return True


def test_latex_has_no_command_of_theirs(folder: Path):
    files = [*folder.rglob("*.tex")]
    assert len(files) > 9
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "\\input{x}" not in text and "\\write18" not in text, path
        assert not [sign for sign in text if sign in "\x1b\u202e"], path
