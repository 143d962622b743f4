"""The commands in this process, the way the shell calls them, and as real processes."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from transformers.utils import logging

from attnlens.cli import main
from tests.cli.shell import Done, Finished, Run, process
from tests.conftest import Tuning


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as the real processes have, so that both give the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def attnlens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`attnlens(*words)` runs a command in this process, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    verbosity = logging.get_verbosity()
    # A run in the background has interrupts switched off, and hands that down.
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["attnlens", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return Done(int(left.value.code or 0), said.out, said.err)

    yield run
    signal.signal(signal.SIGINT, interrupts)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def finished(tuning: Tuning, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`attnlens report BASE TUNED --json`, nothing more."""
    folder = tmp_path_factory.mktemp("finished")
    done = process("report", tuning.base, tuning.tuned, "--json", cwd=folder)
    return Finished(done, folder / "report-base.ckpt-vs-tuned.ckpt")
