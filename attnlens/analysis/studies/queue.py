"""The cells of a study, each in a process of its own, several at a time; what is finished is never run again."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from attnlens.analysis.studies.cells import CELLS, FAILED, ROW, TRAINED, Cell, Plan
from attnlens.analysis.studies.work import Job, without_weights
from attnlens.checkpoints.seal import read_facts, write_facts


@dataclass
class State:
    """Where a study stands: cells finished, failed with their reason, running with stage, done and total.

    total: all cells; those of arms whose learning rate is still open are counted, too. begun: jobs of this run.
    """

    finished: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    running: dict[Cell, tuple[str, int, int]] = field(default_factory=dict)
    total: int = 0
    begun: int = 0


Watch = Callable[[State], None]


def run_cells(plan: Plan, processes: int, watch: Watch) -> State:
    """Run what is missing: the grids, then every cell. A cell that fails is told in the state, and the rest goes on.

    The caller holds the folder. A kill at any moment loses no finished cell; the next call goes on within the cells
    that were running. Ctrl-C ends the running cells at once.
    """
    state = State(total=plan.size)
    # What failed is tried again; a grid is not decided before.
    for path in plan.folder.glob(f"{CELLS}/**/{FAILED}"):
        path.unlink()
    tried = set[tuple[Cell, bool]]()
    workers: dict[int, _Worker] = {}
    events: SimpleQueue[int] = SimpleQueue()
    try:
        while True:
            for place, job in zip(_free(workers, processes), _waiting(plan, tried), strict=False):
                tried.add((job.cell, job.measure))
                workers[place] = _Worker(job, place, events)
            state.begun = len(tried)
            _read(plan, state, workers)
            watch(state)
            if not workers:
                return state
            worker = workers.get(place := events.get())
            if worker is not None and worker.ended:  # its last word may come after it was seen to have ended
                _settle(workers.pop(place))
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.listener.join()


def _free(workers: dict[int, "_Worker"], processes: int) -> list[int]:
    return [place for place in range(processes) if place not in workers]


def _waiting(plan: Plan, tried: set[tuple[Cell, bool]]) -> list[Job]:
    """What is left to do and was not tried in this run, grids first."""
    grid = [Job(plan, cell, measure=False) for cell in plan.grid() if not _has(plan, cell, TRAINED)]
    cells = [Job(plan, cell, measure=True) for cell in plan.cells() if not _has(plan, cell, ROW)]
    return [job for job in (*grid, *cells) if (job.cell, job.measure) not in tried]


def _has(plan: Plan, cell: Cell, name: str) -> bool:
    return (plan.folder / cell.path / name).is_file()


def _read(plan: Plan, state: State, workers: dict[int, "_Worker"]) -> None:
    """Bring the state up to date with the disk and the processes."""
    everything = list(dict.fromkeys([*plan.grid(), *plan.cells()]))
    failures = {cell: read_facts(plan.folder / cell.path / FAILED) for cell in everything}
    state.finished = [cell for cell in plan.cells() if _has(plan, cell, ROW)]
    state.failed = {cell: facts["error"] for cell, facts in failures.items() if facts is not None}
    state.running = {worker.job.cell: worker.progress for worker in workers.values()}


def _settle(worker: "_Worker") -> None:
    """After a process has ended: a fault that it could not tell itself, and weights that nobody needs."""
    job, code = worker.job, worker.process.returncode
    done = _has(job.plan, job.cell, ROW if job.measure else TRAINED)
    if not done and not _has(job.plan, job.cell, FAILED):
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        told = f"its process ended with {reason}; if memory ran out, use fewer processes or a smaller batch_size"
        write_facts(job.folder / FAILED, {"key": job.plan.key(job.cell), "error": told})
    plan = job.plan
    if done and not plan.file.keep_checkpoints:
        kept = set(plan.cells())
        for cell in plan.grid():
            arm = plan.arm(cell.arm)
            if cell not in kept and plan.chosen(cell.model, cell.data, arm) is not None:
                without_weights(Job(plan, cell, measure=False))


class _Worker:
    """A process that works on one cell, and the thread that listens to it."""

    def __init__(self, job: Job, place: int, events: "SimpleQueue[int]"):
        self.job = job
        self.progress = ("starting", 0, 0)
        self.ended = False
        threads = str(job.plan.file.threads)
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        if (devices := torch.cuda.device_count()) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(place % devices)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "attnlens.analysis.studies.process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.listener = threading.Thread(target=self._listen, args=(place, events), daemon=True)
        self.listener.start()

    def _listen(self, place: int, events: "SimpleQueue[int]") -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.process:
            with suppress(BrokenPipeError), self.process.stdin:  # it ended before it began, and is told as that
                pickle.dump(self.job, self.process.stdin)
            for line in self.process.stdout:
                stage, done, total = json.loads(line)
                self.progress = (stage, done, total)
                events.put(place)
        self.ended = True
        events.put(place)
