"""`attnlens report`: what it writes and says; the same question twice, another one in the same folder, kills."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest

from attnlens.analysis import measure
from attnlens.checkpoints.identity import read_record
from attnlens.text.corpus import read_corpus
from tests.cli.shell import Finished, Run, keep_case, refused, start, tree
from tests.conftest import Tuning

FIGURES = {"layer_profile", "entropy_profile", "focus_heads", "entropy_heads", "weight_change", "weight_modules"}
FIGURES |= {"focus_top_heads", "entropy_top_heads", "jsd_profile", "received_profile", "refocusing", "circuit_change"}
FIGURES |= {"passage", "word_maps", "training", "weight_movement", "gradient_norms", "agreement", "controls"}


def test_without_options_the_recorded_heldout_rows_are_measured(finished: Finished, tuning: Tuning):
    """Base is a BertModel, tuned a BertForSequenceClassification; stdout is one object, stderr names the data."""
    assert finished.done.code == 0
    result = json.loads(finished.done.out)
    record = read_record(tuning.tuned)
    assert record is not None
    held = read_corpus(tuning.data).select(record["data"]["heldout"]["rows"])
    assert result["models"] == ["base.ckpt", "tuned.ckpt"] and result["salience"] == ["spans"]
    assert result["texts"] == min(200, len(held)) and result["documents"] == len({row.document for row in held})
    assert result["report"] == "report-base.ckpt-vs-tuned.ckpt/report.html"
    assert finished.done.err.splitlines() == [
        f"Measuring base.ckpt, tuned.ckpt on 200 of {len(held)} texts, at most 512 tokens each: {tuning.data} "
        "(held out from the training of tuned.ckpt)"
    ]


def test_the_folder_holds_page_figures_tables_and_data(finished: Finished):
    folder = finished.folder
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "references.bib", "summary.json", "figures", "tables",
        "comparison.zarr", "comparison.json", "passages.npz", "weights.csv", "heads.csv", "tests.csv", "run.json",
        "SHA256SUMS",
    }  # fmt: skip
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert {f"{name}.{ending}" for name in FIGURES for ending in ("pdf", "svg", "png", "csv", "txt", "tex")} == drawn
    tables = {"tests", "weights", "layers", "states", "heads", "examples", "models"}
    tables |= {"training", "cost", "forgetting", "classes"}
    assert {path.stem for path in (folder / "tables").iterdir()} == tables
    assert json.loads((folder / "summary.json").read_text())["verdict"] == json.loads(finished.done.out)["verdict"]
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "attnlens report" in page  # the command that made it


def test_asked_again_nothing_is_measured(
    attnlens: Run, finished: Finished, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
):
    """Also where the tuned checkpoint alone is named: its record knows base and data."""
    monkeypatch.setattr("attnlens.show.run.compare", None)
    monkeypatch.chdir(finished.folder.parent)
    before = tree(finished.folder)
    for checkpoints in ([tuning.base, tuning.tuned], [tuning.tuned]):
        done = attnlens("report", *checkpoints)
        assert done.code == 0 and "report-base.ckpt-vs-tuned.ckpt is already complete" in done.err
        assert json.loads(finished.done.out)["sentence"] in " ".join(done.out.split())
        assert done.out.splitlines()[-1] == "Report: report-base.ckpt-vs-tuned.ckpt/report.html"
        assert attnlens("report", *checkpoints, "--json").out == finished.done.out
    assert tree(finished.folder) == before


def test_the_command_of_its_provenance_gives_the_same_answer(
    attnlens: Run, undrawn: None, finished: Finished, tmp_path: Path
):
    """In another folder, the one that a stored comparison names: the same numbers to the byte."""
    record = json.loads((finished.folder / "comparison.json").read_text())
    words = shlex.split(record["provenance"]["command"])
    assert words[:2] == ["attnlens", "report"]
    assert attnlens(*words[1:], "--json").out == finished.done.out
    again = tree(tmp_path / finished.folder.name)
    for name, content in tree(finished.folder).items():
        if name.startswith("comparison.zarr/") or (name.endswith("s.csv") and "/" not in name):
            assert again[name] == content, name


def test_every_line_fits_a_screen_of_eighty_columns(
    attnlens: Run, finished: Finished, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.folder.parent)
    done = attnlens("report", tuning.tuned)
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert "\x1b" not in done.out + done.err


def test_another_question_in_the_same_folder_needs_force(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    first = attnlens("report", tuning.tuned, "-o", "it", "--limit", "20", "--json")
    (tmp_path / "it" / "notes.md").write_text("mine")
    before = tree(tmp_path)
    another = ("report", tuning.tuned, "-o", "it", "--limit", "21", "--json")
    assert refused(attnlens(*another), "another run's report: choose another -o DIR, or replace it with --force")
    assert tree(tmp_path) == before
    second = attnlens(*another, "--force")
    assert (json.loads(first.out)["texts"], json.loads(second.out)["texts"]) == (20, 21)
    assert (tmp_path / "it" / "notes.md").read_text() == "mine"
    assert not (tmp_path / "it" / ".replaced").exists()
    assert attnlens(*another).out == second.out


def test_force_with_a_fault_keeps_the_earlier_report(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    attnlens("report", tuning.tuned, "-o", "it", "--limit", "20")
    before = tree(tmp_path)
    fault = attnlens("report", tuning.tuned, "-o", "it", "--salience", "spnas", "--force")
    assert refused(fault, "did you mean 'spans'?") and tree(tmp_path) == before


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_of_others_is_never_touched(attnlens: Run, tuning: Tuning, tmp_path: Path, force: tuple[str, ...]):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "run.json").write_text("[]")
    assert refused(attnlens("report", tuning.tuned, "-o", "it", *force), "it holds other files: choose another -o DIR")
    assert tree(tmp_path) == {"it/run.json": b"[]"}


def test_a_page_that_was_deleted_is_made_again(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    words = ("report", tuning.tuned, "-o", "it", "--limit", "20", "--json")
    first = attnlens(*words)
    (tmp_path / "it" / "report.html").unlink()
    assert attnlens(*words).out == first.out and (tmp_path / "it" / "report.html").exists()


def test_a_report_in_which_a_byte_changed_is_made_again(
    attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    words = ("report", tuning.tuned, "-o", "it", "--limit", "20", "--json")
    first, path = attnlens(*words), tmp_path / "it" / "tests.csv"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.1", b"0.7", 1))
    again = attnlens(*words)
    assert again.out == first.out and path.read_bytes() == whole != whole.replace(b"0.1", b"0.7", 1)
    told = (
        "it/tests.csv has changed since it was written (its sha256 is not that in SHA256SUMS): the report is made again"
    )
    assert caplog.messages == [told]


def test_another_tokenizer_is_another_question(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    """The same weights read other tokens: the earlier report does not answer for them."""
    for name in ("base", "tuned"):
        shutil.copytree(getattr(tuning, name), tmp_path / name)
    words = ("report", "base", "tuned", "-o", "it", "--limit", "20")
    assert attnlens(*words).code == 0
    for name in ("base", "tuned"):
        keep_case(tmp_path / name)
    assert refused(attnlens(*words), "another run's report")


def test_several_tuned_models_and_no_text(attnlens: Run, tuning: Tuning, tmp_path: Path):
    """With --no-text no word that stands in the texts alone is anywhere in the folder; without it, it is."""
    rows = [json.loads(line) for line in tuning.data.read_text().splitlines()[:16]]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row | {"text": f"{row['text']} Quetzalcoatlus"}) + "\n" for row in rows))
    words = ("report", tuning.base, tuning.tuned, tuning.base, "--data", data, "--json")
    result = json.loads(attnlens(*words, "-o", "without", "--no-text").out)
    assert result["models"] == ["base.ckpt", "tuned.ckpt", "base.ckpt (2)"]
    assert result["answers"]["base.ckpt (2)"]["spans"]["verdict"] == "identical"
    assert (tmp_path / "without" / "report.html").exists() and mentions(tmp_path / "without") == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlens.show.run.report", lambda comparison, directory: directory)
        attnlens(*words, "-o", "with")
    assert mentions(tmp_path / "with") == ["comparison.json"]


def mentions(folder: Path) -> list[str]:
    return [name for name, content in tree(folder).items() if b"Quetzalcoatlus" in content]


def test_a_model_against_itself_is_identical(attnlens: Run, undrawn: None, tuning: Tuning):
    done = attnlens("report", tuning.base, tuning.base, "--data", tuning.data, "--limit", "20")
    assert done.code == 0 and "Identical. The two checkpoints give exactly the same" in done.out


def test_without_record_and_data_the_probe_sentences_are_measured(
    attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path
):
    shutil.copytree(tuning.tuned, tmp_path / "foreign")
    (tmp_path / "foreign" / "attnlens.json").unlink()
    done = attnlens("report", tuning.base, "foreign", "--json")
    assert "200 of 224 texts" in done.err and "general sentences that come with attnlens" in done.err
    result = json.loads(done.out)
    assert result["verdict"] == "not asked" and result["salience"] == []
    assert result["sentence"] == (
        "Measured on 200 general English sentences written for this tool; this says nothing about your task. "
        "Add --data FILE."
    )


def test_a_base_that_changed_since_training_is_not_followed(attnlens: Run, tuning: Tuning, tmp_path: Path):
    """A record names paths: what it names must be what was there."""
    shutil.copytree(tuning.tuned, tmp_path / "tuned")
    path = tmp_path / "tuned" / "attnlens.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"base": record["base"] | {"path": str(tuning.tuned)}}))
    assert refused(attnlens("report", "tuned"), "attnlens.json has changed since it was written")
    (tmp_path / "tuned" / "SHA256SUMS").unlink()
    assert refused(attnlens("report", "tuned"), "has changed since (its sha256 is not the record's)")


def wait_for_parts(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob("parts/*.npz"))) < count:
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.002)


def test_a_killed_run_resumes_and_gives_the_same_tables(
    attnlens: Run, finished: Finished, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Kill -9 amid the parts; half-written files stay, a part is spoiled; the rest is measured, and no more."""
    running = start("report", tuning.base, tuning.tuned, cwd=tmp_path)
    folder = tmp_path / finished.folder.name
    wait_for_parts(folder, 2)
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert {path.name for path in folder.iterdir()} == {".lock", "parts", "run.json"}  # the system let go of the lock
    kept = sorted(folder.glob("parts/*.npz"))
    assert len(kept) >= 2
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    (folder / "parts" / "000012.tmp").write_bytes(b"half")
    (folder / ".comparison-abc").mkdir()
    (folder / ".report.html.abc").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in kept[1:]}
    measured = list[int]()

    def part(subjects, prepared, group, real=measure._part):
        assert {path: path.stat().st_mtime_ns for path in times} == times
        measured.append(len(group))
        return real(subjects, prepared, group)

    monkeypatch.setattr(measure, "_part", part)
    assert attnlens("report", tuning.base, tuning.tuned).code == 0
    assert len(measured) == 13 - len(times)
    assert tree(folder / "tables") == tree(finished.folder / "tables")
    assert tree(folder).keys() == tree(finished.folder).keys()


def test_an_interrupt_leaves_without_a_traceback_and_keeps_the_parts(
    attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = list[int]()

    def part(*arguments, real=measure._part):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    words = ("report", tuning.tuned, "-o", "it", "--limit", "40", "--batch-size", "8")
    monkeypatch.setattr(measure, "_part", part)
    done = attnlens(*words)
    assert done.code == 130 and done.out == ""
    assert done.err.splitlines()[2:] == [
        "Interrupted: what was measured is kept in it; the same command goes on from there."
    ]
    assert len(list((tmp_path / "it" / "parts").iterdir())) == 2 and not (tmp_path / "it" / "report.html").exists()
    assert attnlens(*words).code == 0 and len(calls) == 3 + 3


def test_an_interrupt_before_the_first_part_leaves_nothing(
    attnlens: Run, tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measure, "_part", lambda *arguments: signal.raise_signal(signal.SIGINT))
    done = attnlens("report", tuning.tuned, "-o", "a/b")
    assert done.code == 130 and done.err.splitlines()[2:] == ["Interrupted: nothing unfinished was kept."]
    assert list(tmp_path.iterdir()) == []


def test_texts_longer_than_the_model_reads_are_cut(attnlens: Run, undrawn: None, tuning: Tuning, tmp_path: Path):
    row = {"text": "The tenant shall pay the rent on time. " * 90, "document": "d", "spans": [{"start": 4, "end": 10}]}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n")
    done = attnlens("report", tuning.tuned, "--data", "long.jsonl", "--max-length", "2000", "-o", "it")
    assert done.code == 0 and "1 of 1 texts were cut at 512 tokens" in " ".join(done.out.split())
    assert "1 of 1 texts, at most 512 tokens each: long.jsonl" in done.err
