"""Checksums beside what attnlens wrote: a byte that changed since is an error, never another number.

Of a folder in SHA256SUMS, so that `sha256sum --check SHA256SUMS` says the same without us; of facts among themselves.
"""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from attnlens.checkpoints.files import write
from attnlens.checkpoints.identity import file_sha256, files_sha256, home_free
from attnlens.core.errors import AttnlensError, Damaged

SUMS, SUM = "SHA256SUMS", "checksum"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def seal(folder: Path) -> None:
    """Write down the checksum of every file in the folder and below it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    # A line break in a name would need a form of its own.
    names = {path.relative_to(folder).as_posix(): path for path in files if "\n" not in path.name}
    lines = [f"{file_sha256(path)}  {name}\n" for name, path in names.items()]
    write(folder / SUMS, "".join(lines).encode(errors="surrogateescape"))


def check_seal(path: Path, endings: tuple[str, ...] | None = None, *, whole: bool = False) -> None:
    """Raise Damaged for a file that is not the one SHA256SUMS tells of: of a folder any, else `path` itself.

    endings: of a folder, files with these alone. whole: none may be missing. Folders without a list are not checked.
    """
    folder = path if path.is_dir() else path.parent
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        entry = LINE.fullmatch(line)
        if entry is None:
            continue
        place = PurePosixPath(entry[2])
        outside = place.is_absolute() or ".." in place.parts  # a stranger's list may name any file of this machine
        file = folder / place
        if outside or path not in (folder, file) or (endings is not None and file.suffix not in endings):
            continue
        if not file.is_file():
            if whole:
                raise Damaged(f"{home_free(file)} is missing, which {SUMS} names", "make it or copy it again")
        elif file_sha256(file) != entry[1] and files_sha256([file]) != entry[1]:  # the former may remember
            raise Damaged(
                f"{home_free(file)} has changed since it was written (its sha256 is not that in {SUMS})",
                f"make it or copy it again, or remove {SUMS} if you changed it yourself",
            )


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Put facts on disk as JSON with their checksum, whole or not at all, a kill or a power cut in between included."""
    assert SUM not in facts
    plain = json.loads(json.dumps(facts))  # numbers that are keys become text
    write(path, json.dumps(plain | {SUM: _sum(plain)}, ensure_ascii=False, indent=1).encode())


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
    advice = f"remove {home_free(path.parent)}, and the same command makes it again"
    raise AttnlensError(f"{home_free(path)} is damaged: {advice}")


def _sum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
