"""Files that are there whole or not at all, and folders that one run writes at a time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnlens.core.errors import OutputExists

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


def write(path: Path, content: bytes) -> Path:
    """Write `content` to `path` under a temporary name, flush it to disk, then rename; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_mask())  # mkstemp makes files that only their owner reads
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """The folder and those above it, made as needed; what was made and is empty in the end is removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in new:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold the file `lock` against every other process; OutputExists(refusal) where one holds it already.

    The system lets go of it at a kill. On file systems without locks nothing is held.
    """
    with lock.open("a") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExists(refusal) from None
        except OSError:
            pass
        # The one who held it may have removed it since: then a third may hold another file of this name.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise OutputExists(refusal)
        yield


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
