"""What a checkpoint or a data file is: checksums of its bytes, and its path without the home directory."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from attnlens.core.errors import CheckpointError

RECORD = "attnlens.json"  # the training record in a folder that `attnlens finetune` wrote
BLOCK = 1 << 20  # bytes read at a time: the files are larger than memory need be


def weights_sha256(directory: str | Path) -> str:
    """SHA-256 over the bytes of a checkpoint's weight files, in the order of their names.

    All `*.safetensors` of the directory, else all `*.bin` except the Trainer's `training_args.bin`; with one
    file it is that file's own checksum. The index of a sharded checkpoint holds no weight and is left out.
    """
    folder = Path(directory)
    files = sorted(folder.glob("*.safetensors"))
    files = files or sorted(path for path in folder.glob("*.bin") if path.name != "training_args.bin")
    if not files:
        raise CheckpointError(
            f"{home_free(folder)} holds no *.safetensors and no *.bin: needed a checkpoint with weights."
        )
    return file_sha256(files[0]) if len(files) == 1 else files_sha256(files)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """The training record of a checkpoint folder; None where attnlens did not write one."""
    path = Path(folder).expanduser() / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{home_free(path)} cannot be read as JSON ({error}): remove it or train again."
        ) from error
    parts = ("base", "data", "metrics")
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in parts):
        raise CheckpointError(f"{home_free(path)} is not a training record of attnlens: remove it or train again.")
    return record


def home_free(path: str | Path) -> str:
    """The path with the user's home directory written as `~`; `Path(…).expanduser()` undoes it."""
    path, home = Path(path), Path.home()
    # A machine without a home directory reports "/": nothing personal would be hidden by replacing that.
    if home != Path(home.anchor) and path.is_relative_to(home):
        return str(Path("~") / path.relative_to(home))
    return str(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of one file; its bytes are read once as long as nobody writes to it: commands ask several times."""
    facts = path.stat()
    return _remembered(path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)


@cache
def _remembered(path: Path, *facts: int) -> str:
    return files_sha256([path])


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of several files, in the order given."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
