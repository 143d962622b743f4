"""One report in several processes: each measures its share, the first answers, and the tables are those of one."""

import json
from pathlib import Path

import numpy as np
import pytest

from attnlens.analysis.parts import Parts
from attnlens.core.errors import AttnlensError
from attnlens.show.run import ReportOptions, run_report
from attnlens.training.processes import own_device, rank, settled
from tests.conftest import Tuning
from tests.training.test_distributed import launched

# First process 1 cannot write its second part; then both go on.
WORKER = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from attnlens.analysis import parts
from attnlens.cli import app
from attnlens.show import run
from attnlens.training.processes import met, rank

base, tuned, data, output = map(Path, sys.argv[1:])
write, wrote, full = parts._write, [], True

def watched(path, part):
    if full and rank() == 1 and wrote:
        raise OSError("no room")
    write(path, part)
    wrote.append(path.name)

parts._write = watched
run.report = lambda comparison, directory: (directory / "report.html").write_text("undrawn")
options = run.ReportOptions(data=data, output=output, limit=20, batch_size=4)
with met():
    try:
        run.run_report([base, tuned], options)
        told = None
    except OSError as error:
        told = f"{type(error).__name__}: {error}"
    kept = sorted(path.name for path in (output / "parts").iterdir())
    before, full = len(wrote), False
    dist.barrier()
    result = run.run_report([base, tuned], options)
    again = run.run_report([base, tuned], options)
    everywhere = [None] * 2
    states = {"told": told, "kept": kept, "wrote": [wrote[:before], wrote[before:]]}
    dist.all_gather_object(everywhere, states | {"complete": [result.was_complete, again.was_complete]})
    if rank() == 0:
        print(json.dumps(everywhere))
    words = ["report", base, tuned, "--data", data, "--limit", "8", "--json", "-o", output.parent / "command"]
    app(list(map(str, words)), standalone_mode=False)
"""


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


@pytest.mark.usefixtures("undrawn")
def test_two_processes_write_the_tables_of_one(tuning: Tuning, tmp_path: Path):
    """To the last byte; a fault in one is told by both, and what was measured before it is not measured again."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = launched([str(script), str(tuning.base), str(tuning.tuned), str(tuning.data), str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-3000:]
    states, told = map(json.loads, done.stdout.splitlines())
    zero, one = states
    assert zero["wrote"] == [["000000.npz", "000002.npz", "000004.npz"], []]
    assert one["wrote"] == [["000001.npz"], ["000003.npz"]]
    assert one["told"] == "OSError: no room" and zero["told"] == "OSError: process 1 of 2 stopped: no room"
    assert "000001.npz" in zero["kept"] and "000003.npz" not in zero["kept"]
    assert zero["complete"] == one["complete"] == [False, True]
    options = ReportOptions(data=tuning.data, output=tmp_path / "one", limit=20, batch_size=4)
    run_report([tuning.base, tuning.tuned], options)
    assert tables(tmp_path / "one") and tables(tmp_path / "one") == tables(tmp_path / "two")
    assert not (tmp_path / "two" / "parts").exists()
    # The command: one of the two speaks.
    assert told["report"] == str(tmp_path / "command" / "report.html")
    assert done.stderr.startswith("Measuring base.ckpt, tuned.ckpt on 8 of") and done.stderr.count("\n") == 1


def computed(number: int) -> dict[str, np.ndarray]:
    return {"example": np.array([number])}


@pytest.mark.parametrize("process", [0, 1, 2])
def test_shares_are_disjoint_and_whole(process: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Processes that do not know of each other: each begins with its own share, and lacks nothing in the end."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(process))
    monkeypatch.setenv("LOCAL_RANK", str(process))
    assert rank() == process and own_device("cuda") == f"cuda:{process}" and own_device("cpu") == "cpu"
    order, told = [], []

    def watched(number: int) -> dict[str, np.ndarray]:
        order.append(number)
        return computed(number)

    parts = list(Parts(watched, [2] * 7, tmp_path, "it").collected(lambda done, total: told.append((done, total))))
    share = list(range(process, 7, 3))
    assert order == share + [number for number in range(7) if number not in share]
    assert [int(part["example"][0]) for part in parts] == list(range(7))
    assert told == [(2 * done, 14) for done in range(len(share) + 1)]


def test_a_fault_is_raised_as_it_came():
    settled(None)
    with pytest.raises(AttnlensError, match=r"^mine$"):
        settled(AttnlensError("mine"))


def test_without_a_folder_nothing_is_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert len(list(Parts(computed, [1, 1]).collected(lambda done, total: None))) == 2
