"""The folder of a report: whose it is, whether it is complete, and what a fault or a kill leaves of it."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attnlens import __version__
from attnlens.analysis.results import MAPS, RECORD, STORE, TABLES
from attnlens.checkpoints.files import alone, made, write
from attnlens.checkpoints.seal import SUMS, check_seal
from attnlens.core.errors import AttnlensError, Damaged, OutputExists

RUN = "run.json"
PARTS = "parts"
PAGE = "report.html"
BIBLIOGRAPHY = "references.bib"
LOCK = ".lock"  # held by the run that writes the report
# What a report consists of: nothing else in its folder is ever moved or removed.
COMPARISON = (STORE, RECORD, MAPS, SUMS, *(f"{table}.csv" for table in TABLES))
CONTENTS = (PAGE, "summary.json", "figures", "tables", BIBLIOGRAPHY, *COMPARISON, PARTS, RUN)
REPLACED = ".replaced"  # where the report that --force replaces waits until the new one is complete
# Half-written files that a kill leaves.
HALVES = (".comparison-*", f".{PAGE}.*", f".{RUN}.*", ".summary.json.*", "figures/.*", "tables/.*")


def is_complete(directory: Path, key: str, *, force: bool) -> bool:
    """True for a finished report of this run; OutputExists for a folder that holds something else."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise OutputExists(f"{directory} is a file: needed the name of a folder, choose another -o DIR")
    if (directory / REPLACED).exists() or (_state(directory).get("complete") and (directory / PARTS).exists()):
        with suppress(OutputExists), _held(directory, "a run that is at work tidies up itself"):
            _tidy(directory)
    state = _state(directory)
    if state.get("key") == key:
        return bool(state.get("complete")) and (directory / PAGE).is_file() and _is_whole(directory)
    ours = (REPLACED, LOCK)
    if not state and any(path.name not in ours and not path.match(f".{RUN}.*") for path in directory.iterdir()):
        raise OutputExists(f"{directory} holds other files: choose another -o DIR")
    if state and not force:
        raise OutputExists(f"{directory} holds another run's report: choose another -o DIR, or replace it with --force")
    return False


def _tidy(directory: Path) -> None:
    """After a kill: a report that --force was moving aside comes back, leftovers of a complete one go."""
    if not (directory / RUN).exists():
        _move_contents(directory / REPLACED, directory)
    elif _state(directory).get("complete"):
        for junk in (PARTS, REPLACED):
            _remove(directory / junk)


def _is_whole(directory: Path) -> bool:
    """Whether no number in it has changed since; else the same command makes it again, and says why."""
    try:
        check_seal(directory, whole=True)
    except Damaged as error:
        logging.getLogger("attnlens").warning(f"{error.fault}: the report is made again")
        return False
    return True


def _state(directory: Path) -> dict[str, Any]:
    """What the folder says about its run; empty where no report is or was in the making."""
    try:
        state = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) and {"attnlens", "key"} <= state.keys() else {}


@contextmanager
def claimed(directory: Path, key: str) -> Iterator[None]:
    """The folder marked as this run's while it works; a user's fault leaves all as it was, a kill leaves the parts.

    An interrupt that leaves parts says so. OutputExists where another run is writing there.
    """
    refusal = f"another run is writing {directory}: wait for it, or choose another -o DIR"
    with made(directory), _held(directory, refusal), _marked(directory, key):
        yield


@contextmanager
def _held(directory: Path, refusal: str) -> Iterator[None]:
    """The folder while no other run is at work in it."""
    with alone(directory / LOCK, refusal):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                (directory / LOCK).unlink(missing_ok=True)


@contextmanager
def _marked(directory: Path, key: str) -> Iterator[None]:
    """`claimed`, of a folder that is held."""
    resuming = _state(directory).get("key") == key
    for half in (path for pattern in HALVES for path in directory.glob(pattern)):
        _remove(half)
    if not resuming:
        _move_contents(directory, directory / REPLACED)
    try:
        _mark(directory, key, complete=False)
        yield
    except BaseException as error:
        parts = any((directory / PARTS).glob("*.npz"))
        if not resuming and (isinstance(error, AttnlensError) or not parts):
            for name in CONTENTS:
                _remove(directory / name)
            _move_contents(directory / REPLACED, directory)
        if isinstance(error, KeyboardInterrupt) and parts:
            raise KeyboardInterrupt(
                f"what was measured is kept in {directory}; the same command goes on from there"
            ) from error
        raise
    _mark(directory, key, complete=True)
    _remove(directory / PARTS)
    _remove(directory / REPLACED)


def _mark(directory: Path, key: str, *, complete: bool) -> None:
    """Say whose the folder is; another tool's run.json has no such mark."""
    write(directory / RUN, json.dumps({"attnlens": __version__, "key": key, "complete": complete}).encode())


def _move_contents(source: Path, target: Path) -> None:
    """Move a report's files into another folder of this disk; an emptied folder of replaced files is removed."""
    for name in CONTENTS:
        if (source / name).exists():
            target.mkdir(exist_ok=True)
            _remove(target / name)
            (source / name).rename(target / name)
    if source.name == REPLACED:
        _remove(source)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
