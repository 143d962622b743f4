"""The folder of a report, and questions that cannot be asked: what stays, what goes, what is never touched."""

import json
from pathlib import Path

import pytest

from attnlens.core.errors import AttnlensError, CheckpointError, OutputExists
from attnlens.show.folder import claimed, is_complete
from attnlens.show.run import ReportOptions, run_report


def fill(folder: Path, key: str, *, page: str = "page") -> None:
    """What a run leaves that goes well."""
    with claimed(folder, key):
        (folder / "parts").mkdir(exist_ok=True)
        (folder / "parts" / "000000.npz").write_text("part")
        (folder / "figures").mkdir()
        (folder / "report.html").write_text(page)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_report_is_complete_for_its_key_alone(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    assert not is_complete(folder, "one", force=False)
    fill(folder, "one")
    assert files(folder) == {"report.html", "run.json"} and is_complete(folder, "one", force=False)
    with pytest.raises(OutputExists, match=r"holds another run's report.*--force"):
        is_complete(folder, "two", force=False)
    assert not is_complete(folder, "two", force=True)


def test_an_unfinished_run_is_not_complete_and_keeps_its_parts(tmp_path: Path):
    """Whatever stops it other than a user's fault: here, an interrupt after the first part."""
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "it", "one"):
        (tmp_path / "it" / "parts").mkdir()
        (tmp_path / "it" / "parts" / "000000.npz").write_text("part")
        raise KeyboardInterrupt
    assert files(tmp_path / "it") == {"parts/000000.npz", "run.json"}
    assert not is_complete(tmp_path / "it", "one", force=False)
    with pytest.raises(OutputExists):
        is_complete(tmp_path / "it", "two", force=False)


@pytest.mark.parametrize("error", [AttnlensError("fault"), KeyboardInterrupt(), RuntimeError("bug"), OSError("disk")])
def test_a_fault_before_the_first_part_leaves_nothing(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), claimed(tmp_path / "a" / "b", "one"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_user_s_fault_removes_the_parts_of_this_run_and_nothing_else(tmp_path: Path):
    (tmp_path / "it").mkdir()
    with pytest.raises(AttnlensError), claimed(tmp_path / "it", "one"):
        (tmp_path / "it" / "parts").mkdir()
        (tmp_path / "it" / "parts" / "000000.npz").write_text("part")
        raise AttnlensError("NaN in the second part")
    assert (tmp_path / "it").is_dir() and files(tmp_path) == set()


def test_force_replaces_only_once_the_new_report_is_complete(tmp_path: Path):
    folder = tmp_path / "it"
    fill(folder, "one", page="first")
    (folder / "notes.md").write_text("mine")
    with pytest.raises(AttnlensError), claimed(folder, "two"):
        assert not (folder / "report.html").exists()
        raise AttnlensError("fault")
    assert (folder / "report.html").read_text() == "first" and is_complete(folder, "one", force=False)
    fill(folder, "two", page="second")
    assert (folder / "report.html").read_text() == "second"
    assert files(folder) == {"notes.md", "report.html", "run.json"}


def test_a_resumed_run_removes_half_written_files_and_no_other_hidden_ones(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, "one"):
        (tmp_path / "parts").mkdir()
        (tmp_path / "parts" / "000000.npz").write_text("part")
        (tmp_path / "figures").mkdir()
        for name in (".report.html.x7", ".summary.json.x7", ".run.json.x7", "figures/.heads.svg.x7", ".gitignore"):
            (tmp_path / name).write_text("half")
        for name in (".comparison-x7", ".git"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config").write_text("half")
        raise KeyboardInterrupt
    with claimed(tmp_path, "one"):
        assert files(tmp_path) == {".lock", "parts/000000.npz", "run.json", ".gitignore", ".git/config"}


def test_a_kill_before_the_first_file_is_whole_leaves_no_foreign_folder(tmp_path: Path):
    (tmp_path / ".run.json.x7").write_text("half")
    assert not is_complete(tmp_path, "one", force=False)
    with claimed(tmp_path, "one"):
        assert files(tmp_path) == {".lock", "run.json"}


@pytest.mark.parametrize("key", ["one", "two"])
def test_two_runs_do_not_write_one_folder(tmp_path: Path, key: str):
    """Neither the same question nor another one; the first run does not notice, and leaves no lock."""
    with claimed(tmp_path / "it", "one"):
        before = files(tmp_path)
        with (
            pytest.raises(OutputExists, match=r"another run is writing .*it: wait for it"),
            claimed(tmp_path / "it", key),
        ):
            pass
        assert files(tmp_path) == before
    assert files(tmp_path) == {"it/run.json"}


def test_a_kill_before_the_first_file_leaves_a_lock_that_nobody_holds(tmp_path: Path):
    (tmp_path / ".lock").touch()
    assert not is_complete(tmp_path, "one", force=False)
    fill(tmp_path, "one")
    assert is_complete(tmp_path, "one", force=False)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "not json", "[" * 100_000, '{"key": "abc", "lr": 1}'])
def test_another_program_s_run_json_is_not_a_report(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_text(content)
    for force in (False, True):
        with pytest.raises(OutputExists, match="holds other files"):
            is_complete(tmp_path, "one", force=force)


def test_a_report_that_a_kill_left_aside_comes_back(tmp_path: Path):
    """--force had moved the old report, the new run had not begun: another question does not cost the old answer."""
    fill(tmp_path, "one", page="first")
    (tmp_path / ".replaced").mkdir()
    for name in ("report.html", "figures", "run.json"):
        (tmp_path / name).rename(tmp_path / ".replaced" / name)
    with pytest.raises(OutputExists, match="holds another run's report"):
        is_complete(tmp_path, "two", force=False)
    assert is_complete(tmp_path, "one", force=False)
    assert (tmp_path / "report.html").read_text() == "first"


def test_what_a_kill_in_the_last_moment_left_is_tidied(tmp_path: Path):
    fill(tmp_path, "one")
    for name in ("parts", ".replaced"):
        (tmp_path / name).mkdir()
    assert is_complete(tmp_path, "one", force=False)
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "report.html", "run.json"}


@pytest.mark.parametrize(
    "options", [{"limit": 0}, {"limit": 2.5}, {"max_length": 2}, {"batch_size": 0}, {"batch_size": None}, {"seed": -1}]
)
def test_options_that_no_run_can_have(options: dict):
    name, value = next(iter(options.items()))
    with pytest.raises(AttnlensError, match=f"{name} must be a whole number of at least . *; got {value!r}"):
        ReportOptions(**options)


@pytest.mark.parametrize("memory", [0, -1.0, float("nan"), float("inf")])
def test_memory_is_a_positive_number(memory: float):
    with pytest.raises(AttnlensError, match="memory must be a number of GiB above 0; got"):
        ReportOptions(memory=memory)


def test_a_question_needs_two_models():
    with pytest.raises(CheckpointError, match="needed a base and a tuned checkpoint, got none"):
        run_report([])


def test_a_record_without_a_base_is_said(tmp_path: Path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "attnlens.json").write_text(json.dumps({"base": {}, "data": {}, "metrics": {}}))
    with pytest.raises(CheckpointError, match="has no training record that names its base: give both"):
        run_report([tmp_path])
