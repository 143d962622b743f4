"""Checksums beside what attnlens wrote: a byte that changed since is an error, never another number.

Of a folder in SHA256SUMS, so that `sha256sum --check SHA256SUMS` says the same without us; of facts among themselves.
"""

import hashlib
import json
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from attnlens.checkpoints.files import write
from attnlens.checkpoints.identity import files_sha256, home_free
from attnlens.core.errors import AttnlensError, CheckpointError

SUMS, SUM = "SHA256SUMS", "sha256"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def seal(folder: Path) -> None:
    """Write down the checksum of every file in the folder and below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{files_sha256([path])}  {path.relative_to(folder).as_posix()}\n" for path in files]
    write(folder / SUMS, "".join(lines).encode())


def check_seal(path: Path) -> None:
    """Raise CheckpointError for a file that is not the one SHA256SUMS tells of: of a folder any, else `path` itself.

    Folders without it are not checked, and files that are not there any more are not missed: who needs them says so.
    """
    folder = path if path.is_dir() else path.parent
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        entry = LINE.fullmatch(line)
        if entry is None:
            continue
        place = PurePosixPath(entry[2])
        outside = place.is_absolute() or ".." in place.parts  # a stranger's list may name any file of this machine
        file = folder / place
        if outside or path not in (folder, file) or not file.is_file():
            continue
        if _sha256(file) != entry[1]:
            raise CheckpointError(
                f"{home_free(file)} has changed since it was written (its sha256 is not that in {SUMS}): make it or "
                f"copy it again, or remove {SUMS} if you changed it yourself"
            )


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Put facts on disk as JSON with their checksum, whole or not at all, a kill or a power cut in between included."""
    write(path, json.dumps(facts | {SUM: _sum(facts)}, ensure_ascii=False, indent=1).encode())


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file; None where it is not there. AttnlensError where they are not what was written."""
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.pop(SUM) == _sum(facts):
            return facts
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise AttnlensError(
        f"{home_free(path)} is damaged: remove {home_free(path.parent)}, and the same command makes it again"
    )


def _sum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    facts = path.stat()
    return _of(path, facts.st_size, facts.st_mtime_ns)


@cache
def _of(path: Path, size: int, changed: int) -> str:
    """One command looks at a checkpoint several times: its bytes are read once as long as nobody writes to it."""
    return files_sha256([path])
