"""The report as files: what is written, what is escaped, what the tables and the summary hold."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from attnlens.analysis.results import Comparison
from attnlens.checkpoints import files
from attnlens.show.drawing import WIDE
from attnlens.show.figures import figure_set, rendered
from attnlens.show.island import island
from attnlens.show.report import page, report, split_sentence
from attnlens.show.tables import csv, examples_table, spreadsheet_safe
from tests.show.synthetic import make_comparison

BESIDE = ("report.html", "summary.json", "references.bib")
TABLES = ["examples", "heads", "layers", "models", "states", "tests", "training", "weights"]


class Page(HTMLParser):
    """Collects the tags, the attributes and the text outside script and style."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str):
        self.inside = ""

    def handle_data(self, data: str):
        if self.inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return (written / "report.html").read_text()


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch):
    """Figures take seconds; tests of the words around them go without."""
    monkeypatch.setattr("attnlens.show.report.figure_set", lambda comparison: [])
    monkeypatch.setattr("attnlens.show.report.save_figures", lambda comparison, directory: [])


def test_everything_is_written(written: Path):
    assert sorted(path.stem for path in (written / "tables").glob("*.csv")) == TABLES
    assert sorted(path.stem for path in (written / "tables").glob("*.tex")) == ["heads", "layers", "models", "tests"]
    assert {path.name for path in written.iterdir()} == {*BESIDE, "figures", "tables"}
    assert all(path.stat().st_mode & 0o044 for path in written.rglob("*.*")), "others may read what was written"


def test_the_summary_names_the_answer_and_the_files(written: Path, comparison: Comparison):
    summary = json.loads((written / "summary.json").read_text())
    assert summary["verdict"] == "yes" and summary["sentence"] == comparison.answer.sentence
    assert summary["layers"] == [6, 5], "layers count from 1"
    assert summary["models"] == comparison.models and (summary["texts"], summary["documents"]) == (60, 40)
    assert [rung["status"] for rung in summary["rungs"]] == ["yes", "yes", *["not tested"] * 3]
    assert summary["answers"]["minilm-contracts"]["keyness"]["verdict"] == "unclear"
    for path in [summary["paths"]["report"], *summary["paths"]["figures"], *summary["paths"]["tables"]]:
        assert (written / path).is_file()


def test_the_first_screen_stands_in_the_page(text: str, comparison: Comparison):
    shown = re.sub(r"\s+", " ", Page(text).text)
    assert "Yes, on these texts, mainly in layer 6." in shown and "32 went to the marked words" in shown
    assert "Not known: whether the task caused it, whether it repeats, whether the outputs rely" in shown
    for rung in comparison.answer.rungs:
        assert rung.question in shown and rung.detail in shown
    for warning in comparison.provenance["warnings"]:
        assert warning in shown
    assert (
        "attnlens report --knockout" in shown and "sha256" in shown and "Layers and heads are counted from 1" in shown
    )


def test_the_page_loads_nothing_and_styles_by_class_only(text: str):
    parsed = Page(text)
    assert not [attributes for _, attributes in parsed.tags if "style" in attributes]
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    sources = [
        attributes[name] or "" for _, attributes in parsed.tags for name in ("src", "srcset") if name in attributes
    ]
    assert len(sources) == 32 and all(source.startswith("data:image/") for source in sources)
    links = [attributes["href"] or "" for tag, attributes in parsed.tags if tag == "a"]
    assert links and all(re.match(r"(#|figures/|tables/|summary\.json|references\.bib)", link) for link in links)
    assert all(attributes.get("alt") for tag, attributes in parsed.tags if tag == "img")
    anchors = {attributes.get("id") for _, attributes in parsed.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_the_page_is_small(text: str):
    assert len(text.encode()) < 2_500_000


def test_tables_count_from_one_and_hold_points(written: Path, comparison: Comparison):
    tests = pd.read_csv(written / "tables" / "tests.csv")
    assert len(tests) == len(comparison.tests)
    assert tests.loc[tests["family"] == "profile", "layer"].tolist() == [1, 2, 3, 4, 5, 6] * 2
    assert tests.loc[tests["family"] == "total", ["layer", "head"]].isna().all(axis=None)
    np.testing.assert_allclose(tests["estimate"], comparison.tests["estimate"], rtol=1e-8)
    heads = pd.read_csv(written / "tables" / "heads.csv")
    assert (heads["layer"].min(), heads["layer"].max(), heads["head"].max()) == (1, 6, 12)
    layers = pd.read_csv(written / "tables" / "layers.csv").dropna(subset="layer")
    profile = tests[(tests["family"] == "profile") & (tests["salience"] == "keyness")]
    np.testing.assert_allclose(layers["focus_keyness_high"], 100 * profile["high"], rtol=1e-7)
    weights = pd.read_csv(written / "tables" / "weights.csv")
    assert weights.loc[weights["module"] == "embeddings", "layer"].isna().all()


def test_examples_table_is_the_mean_over_heads(comparison: Comparison):
    table = examples_table(comparison)
    assert len(table) == 2 * 60 * 6 and "text" not in table.columns
    row = table[(table["model"] == "minilm-contracts") & (table["id"] == "text-007") & (table["layer"] == 3)].iloc[0]
    data = comparison.data.isel(model=1, example=7, layer=2)
    assert row["entropy_content"] == pytest.approx(float(data["entropy_content"].mean()))
    assert row["focus_keyness"] == pytest.approx(float(data["focus"].sel(salience="keyness").mean()))
    assert (row["document"], row["label"], row["tokens"]) == ("contract-07", "governing law", int(data["tokens"]))


def test_no_cell_is_a_formula():
    frame = pd.DataFrame({"id": ["=1+1", "+x", "-x", "@x", "a=b", "\tx"], "@name": [-1.0, 2.0, 0.0, 1.0, 1.0, None]})
    safe = spreadsheet_safe(frame)
    assert safe["id"].tolist() == ["'=1+1", "'+x", "'-x", "'@x", "a=b", "'\tx"]
    assert list(safe.columns) == ["id", "'@name"] and safe["'@name"].iloc[0] == -1.0, "numbers stay numbers"
    assert frame["id"].iloc[0] == "=1+1", "the table itself is left alone"
    assert csv(frame).decode().splitlines()[1] == "'=1+1,-1"


HOSTILE = '</script><script>alert("x")</script> & \' " <b>bold</b> {{ 7*7 }} $x^2$ \u2028 שלום 🙂'


@pytest.mark.usefixtures("no_figures")
def test_hostile_data_stays_text(tmp_path: Path):
    comparison = make_comparison(tuned=("<img src=x onerror=alert(1)>",), texts=(HOSTILE,))
    passage = dataclasses.replace(comparison.passages[0], id="<i>id</i>", label="</script>")
    provenance = comparison.provenance | {"warnings": ["<script>1</script>"], "command": "<b>", "<u>": {"<s>": "<em>"}}
    hostile = dataclasses.replace(comparison, passages=(passage,), provenance=provenance)
    tags = {tag for tag, _ in Page(report(hostile, tmp_path).read_text()).tags}
    assert not tags & {"b", "i", "s"} and {"script", "u"} <= tags
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == 2 and "onerror=alert(1)>" not in text and "\u2028" not in text
    assert "&lt;img src=x onerror" in text
    restored = json.loads(re.search(r'id="passages">(.*?)</script>', text, re.S)[1])
    assert "".join(restored["passages"][0]["words"]) == HOSTILE
    assert restored["passages"][0]["label"] == "</script>"


def test_the_island_holds_the_attention_in_hundredths(comparison: Comparison):
    content = json.loads(str(island(comparison, comparison.passages)))
    first, passage = content["passages"][0], comparison.passages[0]
    assert content["start"] == 6 and first["maps"][:2] == [[1, 0], [2, 0]] and first["maps"][6] == [6, 3]
    expected = np.round(100 * passage.received[..., np.array(passage.is_word)])
    np.testing.assert_array_equal(np.array(first["received"]), expected)


def test_attention_that_is_missing_is_null(comparison: Comparison):
    passage = comparison.passages[0]
    received = passage.received.copy()
    received[1, 0, 0] = np.nan
    hole = dataclasses.replace(comparison, passages=(dataclasses.replace(passage, received=received),))
    assert json.loads(str(island(hole, hole.passages)))["passages"][0]["received"][1][0][0] is None


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        ({"salience": ()}, "What did fine-tuning do to attention", "How far the evidence goes"),
        ({"scale": 0.0}, "Identical.", "Not known"),
        ({"tuned": ("full", "lora", "alf")}, "every model and every definition", "Traceback"),
    ],
)
def test_other_answers(options: dict, present: str, absent: str, tmp_path: Path):
    shown = Page(report(make_comparison(**options), tmp_path).read_text()).text
    assert present in shown and absent not in shown


def test_no_text_is_embedded_where_none_was_kept(written: Path, comparison: Comparison):
    bare = dataclasses.replace(comparison, passages=())
    text = page(bare, written)
    assert 'id="words"' not in text and 'id="passages"' not in text and '#words"' not in text


def test_a_second_report_is_the_same_to_the_byte(written: Path, comparison: Comparison):
    assert page(comparison, written) == (written / "report.html").read_text()
    for ending, content in rendered(figure_set(comparison)[0], WIDE).items():
        assert content == (written / "figures" / f"layer_profile.{ending}").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = files.write(tmp_path / "new" / "page.html", b"old")
    with pytest.raises(TypeError):
        files.write(path, "text, not bytes")  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == b"old" and [entry.name for entry in path.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("Yes, in layer 6. Of 100 units, 3.5 moved.", ("Yes, in layer 6.", "Of 100 units, 3.5 moved.")),
        ("No answer.", ("No answer.", "")),
    ],
)
def test_the_first_sentence_leads(sentence: str, parts: tuple[str, str]):
    assert split_sentence(sentence) == parts
