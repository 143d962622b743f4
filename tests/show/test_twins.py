"""A shuffled twin in a report: found beside its checkpoint, named, and never an answer of its own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from attnlens.analysis.results import Answer, Comparison
from attnlens.show.findings import focus_finding
from attnlens.show.page_tables import model_rows
from attnlens.show.report import page
from attnlens.show.twins import found_twins, null_note, nulls_named, real_models, twin_name, twins, twins_last
from tests.show.synthetic import make_comparison
from tests.show.trained import record, with_records

NULL = "alf on shuffled labels"
WHOLE = {
    "base": {"sha256": "b"},
    "data": {"train": {"sha256": "t"}, "heldout": {"sha256": "h"}},
    "metrics": {},
    "method": "alf",
    "seed": 0,
}


def checkpoint(folder: Path, **facts: Any) -> Path:
    folder.mkdir()
    (folder / "attnlens.json").write_text(json.dumps(WHOLE | facts))
    return folder


@pytest.fixture
def beside() -> Comparison:
    """A real run that moved, its twin that did not."""
    made = with_records(make_comparison(tuned=("alf", NULL)), [record(), record(null=True)])
    headline = {"layer": 6.0, "estimate": 0.92, "low": 0.2, "high": 1.8}
    still = Answer("no", "No. In every layer the net change is smaller than 2 of 100 units.", (), headline)
    return dataclasses.replace(made, answers=made.answers | {NULL: {"spans": still, "keyness": still}})


def test_the_twin_beside_a_checkpoint_is_found(tmp_path: Path):
    tuned = checkpoint(tmp_path / "tuned.ckpt", null_twin=False)
    assert found_twins(["base", tuned]) == []
    twin = checkpoint(tmp_path / "tuned.null.ckpt", null_twin=True)
    assert found_twins(["base", tuned]) == [twin]
    assert found_twins(["base", tuned, twin]) == [], "it was given"
    assert found_twins(["base", twin]) == []


@pytest.mark.parametrize(
    "other",
    [
        {"null_twin": False},
        {"method": "full"},
        {"seed": 1},
        {"base": {"sha256": "c"}},
        {"data": {"train": {"sha256": "u"}, "heldout": {"sha256": "h"}}},
    ],
)
def test_a_folder_that_is_not_the_twin_of_this_run_is_left_alone(tmp_path: Path, other: dict[str, Any]):
    tuned = checkpoint(tmp_path / "tuned.ckpt", null_twin=False)
    checkpoint(tmp_path / "tuned.null.ckpt", **({"null_twin": True} | other))
    assert found_twins(["base", tuned]) == []


def test_twins_stand_last_and_are_called_what_they_are(tmp_path: Path):
    tuned = checkpoint(tmp_path / "tuned.ckpt", null_twin=False)
    twin = checkpoint(tmp_path / "tuned.null.ckpt", null_twin=True)
    assert twins_last(["base", twin, tuned], ["a", "b", "c"]) == (["base", tuned, twin], ["a", "c", "b"])
    assert twin_name("tuned.null.ckpt", record(null=True)) == "tuned.ckpt on shuffled labels"
    assert twin_name("tuned.null", {"null_twin": True, "task": "causal-lm"}) == "tuned on shuffled words"


def test_the_answers_say_which_is_the_null(beside: Comparison):
    named = nulls_named(beside)
    null = named.answers[NULL]["spans"]
    assert null.sentence.startswith("A null, not an answer: no. In every layer") and null.rungs == ()
    assert named.answers["alf"] == beside.answers["alf"]
    note = named.provenance["warnings"][0]
    assert note.startswith(f"{NULL} is a null: the same training on shuffled labels")
    assert note.endswith("Held-out accuracy: 0.125, against 0.957 in the real run.")
    assert twins(named) == [NULL] and real_models(named) == ["alf"]


def test_a_model_named_as_a_null_is_one_without_any_record(comparison: Comparison):
    made = make_comparison(tuned=("alf", "other"))
    provenance = made.provenance | {"nulls": {"alf": "other"}}
    named = nulls_named(dataclasses.replace(made, provenance=provenance))
    assert twins(named) == ["other"] and named.answers["other"]["spans"].rungs == ()


def test_nothing_is_said_where_there_is_no_twin(comparison: Comparison):
    assert nulls_named(comparison) is comparison and twins(comparison) == []


def test_the_null_does_not_count_as_a_tuned_model(beside: Comparison):
    assert focus_finding(beside) == "Attention moved towards the marked words in layers 5 and 6; not so in the null"
    moved = beside.answers | {NULL: {"spans": Answer("yes", "Yes.", (5,))}}
    assert focus_finding(dataclasses.replace(beside, answers=moved)).endswith("; so it did in the null")
    real = beside.answers["alf"]["spans"]
    third = tuple(dataclasses.replace(rung, status="yes") if rung.number == 3 else rung for rung in real.rungs)
    beyond = moved | {"alf": {"spans": dataclasses.replace(real, rungs=third)}}
    assert focus_finding(dataclasses.replace(beside, answers=beyond)).endswith("; less so in the null")
    rows = model_rows(beside)["rows"]
    assert [row[1][0] for row in rows] == ["yes", "null: no"]


def test_page_one_reads_well_beside_a_null(beside: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("attnlens.show.report.figure_set", lambda comparison: [])
    text = page(nulls_named(beside), tmp_path)
    assert "<h1>Yes, on these texts, mainly in layer 6.</h1>" in text
    assert f"The null, <bdi>{NULL}</bdi>: no; in layer 6 +0.9 (95 % +0.2 … +1.8)." in text
    assert '<span class="pill pill-null">null: no</span>' in text and "of 2 tuned models" not in text
    assert "Training the last blocks, without any score, would have trained the same ones." in text
    assert "What the training cost" in text and "3 of 9 training texts repeat an earlier one." in text


def test_the_words_of_a_twin_follow_its_task():
    facts = {"null_twin": True, "task": "causal-lm", "metrics": {"perplexity": 40.0}}
    assert "shuffled words, whose order teaches nothing" in null_note("twin", facts, None)
    assert null_note("twin", facts, {"metrics": {"perplexity": 12.5}}).endswith(
        "Held-out perplexity: 40, against 12.5 in the real run."
    )
