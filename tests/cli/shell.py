"""How the tests of this floor run commands: in this process as the shell calls them, or as real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).parent / "attnlens"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status, and what it said."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@dataclass(frozen=True)
class Finished:
    """A report that a real process wrote."""

    done: Done
    folder: Path


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """A command as a process of its own."""
    return subprocess.Popen(
        [COMMAND, *map(str, words)],
        cwd=cwd,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process(*words: object, cwd: Path) -> Done:
    """A command as a process of its own, waited for."""
    running = start(*words, cwd=cwd)
    out, err = running.communicate(timeout=120)
    return Done(running.returncode, out, err)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(done: Done, message: str) -> bool:
    """One line on stderr with the message, nothing on stdout, exit 1."""
    lines = done.err.splitlines()
    return (
        done.code == 1
        and done.out == ""
        and len(lines) == 1
        and lines[0].startswith("attnlens: ")
        and (message in lines[0])
    )


def keep_case(checkpoint: Path) -> None:
    """Turn the tokenizer of a checkpoint into one that gives other ids to the same text."""
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    (checkpoint / "SHA256SUMS").unlink(missing_ok=True)  # changed on purpose
