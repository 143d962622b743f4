"""SIGKILL at random moments: the same command goes on, and ends as a run that nothing disturbed.

CI kills each command twice; `make fuzz` (ATTNLENS_FUZZ is set) twenty times. A run is a process forked from one that
has imported everything, so that the moments fall into its work, not into seconds of imports.
"""

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from attnlens.analysis.studies.cells import CELLS, ROW, TRAINED
from attnlens.analysis.studies.process import WATCHED
from attnlens.cli import main
from attnlens.show import figures, report
from tests.analysis.studies.small import FROZEN, small
from tests.cli.shell import tree
from tests.conftest import Tuning

KILLS = 20 if "ATTNLENS_FUZZ" in os.environ else 2
# What differs from run to run: the clock, and what is made of it.
CLOCKED = {"seconds", "cost"}
CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    """The process that others are forked from, with its imports done."""
    CONTEXT.set_forkserver_preload(["tests.test_kills", "attnlens.show.run", "attnlens.show.study"])
    process = CONTEXT.Process(target=print)
    process.start()
    process.join()


def command(words: list[str], folder: Path, said: Path) -> None:
    """A command as a shell would run it in this folder; what it says goes to a file."""
    gc.freeze()  # of the libraries: each collection of a training would visit them
    os.chdir(folder)
    if KILLS < 20:  # figures take most of the time of a report
        figures.figure_set = report.figure_set = lambda comparison, all_of=report.figure_set: all_of(comparison)[:2]
    with said.open("w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        sys.argv = ["attnlens", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()


def begun(words: list[str], folder: Path) -> ForkServerProcess:
    process = CONTEXT.Process(target=command, args=(words, folder, folder.with_suffix(".said")))
    process.start()
    return process


def finished(words: list[str], folder: Path) -> float:
    """Run it to its end; the seconds that took."""
    start = time.monotonic()
    process = begun(words, folder)
    process.join(300)
    assert process.exitcode == 0, folder.with_suffix(".said").read_text()
    return time.monotonic() - start


def same(words: list[str], place: Path, made: Callable[[Path], Any]) -> None:
    """Kill it again and again; whenever it comes to its end, what it made is what a calm run made."""
    calm, torn = place / "calm", place / "torn"
    for folder in (calm, torn):
        folder.mkdir()
    seconds, draw, kills = finished(words, calm), random.Random(0), 0
    while kills < KILLS:
        process = begun(words, torn)
        process.join(draw.uniform(0.0, seconds))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            time.sleep(2 * WATCHED if words[0] == "study" else 0)  # until processes of its own have seen it
            continue
        assert process.exitcode == 0, torn.with_suffix(".said").read_text()
        assert made(torn) == made(calm)
        shutil.rmtree(torn)
        torn.mkdir()
    finished(words, torn)
    assert made(torn) == made(calm)
    assert [path.name for path in sorted(torn.iterdir())] == [path.name for path in sorted(calm.iterdir())]


def without_clock(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in CLOCKED}


def checkpoint(folder: Path) -> dict[str, Any]:
    """Its files; the record without the clock."""
    found: dict[str, Any] = {name: content for name, content in tree(folder).items() if name != "SHA256SUMS"}
    return found | {"attnlens.json": without_clock(json.loads(found["attnlens.json"]))}


def test_finetune_goes_on_after_kills(tuning: Tuning, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(tuning.data.read_text().splitlines(keepends=True)[:100]))
    words = ["finetune", tuning.base, "--data", data, "-o", "out", "--max-steps", "12", "--null-twin"]
    words += ["--device", "cpu", "--resume"]

    def made(folder: Path) -> list[dict[str, Any]]:
        assert {path.name for path in folder.iterdir()} == {"out", "out.null"}
        return [checkpoint(folder / name) for name in ("out", "out.null")]

    same([str(word) for word in words], tmp_path, made)


def test_report_goes_on_after_kills(tuning: Tuning, tmp_path: Path):
    words = ["report", tuning.base, tuning.tuned, "-o", "it", "--limit", "12", "--batch-size", "2"]
    same([str(word) for word in words], tmp_path, lambda folder: tree(folder / "it"))


def test_diff_ends_the_same_after_kills(tuning: Tuning, tmp_path: Path):
    words = ["diff", tuning.base, tuning.tuned, "-o", "it", "--force"]  # or complete tables are refused
    same([str(word) for word in words], tmp_path, lambda folder: tree(folder / "it"))


def test_study_goes_on_after_kills(tuning: Tuning, tmp_path: Path):
    file = small(tmp_path, tuning, FROZEN, seeds="seeds = [0]")

    def made(folder: Path) -> list[Any]:
        cells = sorted((folder / "it" / CELLS).rglob(ROW))
        rows: list[dict[str, Any]] = [json.loads(path.read_text()) | {"checksum": None} for path in cells]
        for row in rows:
            row["record"] = without_clock(row["record"])
        trained = [path.with_name(TRAINED).read_bytes() for path in cells]
        stores = [tree(path.parent / "comparison" / "comparison.zarr") for path in cells]
        return [[str(path.relative_to(folder)) for path in cells], rows, trained, stores]

    same(["study", str(file), "-o", "it"], tmp_path, made)
