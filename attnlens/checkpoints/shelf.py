"""A checkpoint's tensors by name, read one at a time: headers are checked before use, and no code of a file runs."""

import json
import math
import mmap
import pickle
import re
import shlex
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from attnlens.checkpoints.identity import home_free
from attnlens.core.errors import CheckpointError, UnknownName

# What the format calls its dtypes; safetensors knows narrower ones that torch cannot widen to float64.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
# Keys under which training scripts put the weights beside optimizer states: Lightning, the PyTorch tutorials, nanoGPT.
WRAPPED = ("state_dict", "model_state_dict", "model")
CONVERT = (
    'python -c "import sys, torch, safetensors.torch as s; c = torch.load(sys.argv[1], weights_only=False, '
    "map_location='cpu'); c = c.state_dict() if hasattr(c, 'state_dict') else c.get('state_dict', c); "
    "s.save_file({k: v.clone().contiguous() for k, v in c.items() if torch.is_tensor(v)}, "
    "sys.argv[1] + '.safetensors')\""
)


class _Stored(NamedTuple):
    """One tensor that can be read. place: where its numbers lie in memory, equal for tied tensors; None: in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    place: Hashable | None = None


class Shelf:
    """The tensors of one checkpoint's files under their stored names; a context manager that closes them.

    Raises CheckpointError, before anything is allocated, for a file whose header does not fit its bytes, and for a
    pickle that could only be loaded by running code it names.
    """

    def __init__(self, files: Sequence[Path]):
        self._tensors: dict[str, _Stored] = {}
        for path in files:
            try:
                found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
            except OSError as error:
                raise CheckpointError(f"{home_free(path)} cannot be read: {error.strerror or error}") from error
            for name in found:
                if name in self._tensors:
                    raise CheckpointError(f"{home_free(path)} holds {name}, which another shard holds too")
            self._tensors |= found

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Shelf":
        """A shelf over tensors that are in memory already."""
        shelf = cls(())
        shelf._tensors = {name: _held(tensor) for name, tensor in state.items()}
        return shelf

    @property
    def names(self) -> tuple[str, ...]:
        """The names as stored, in the files' order."""
        return tuple(self._tensors)

    @property
    def tied(self) -> list[tuple[str, ...]]:
        """Groups of names whose numbers are stored once; safetensors files hold one name of such a group."""
        groups: dict[Hashable, list[str]] = {}
        for name, stored in self._tensors.items():
            if stored.place is not None and math.prod(stored.shape):
                groups.setdefault(stored.place, []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, known without reading the tensor."""
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype."""
        return self._find(name).dtype

    def read(self, name: str) -> Tensor:
        """The tensor, in its stored dtype, on the CPU; keep it no longer than needed."""
        return self._find(name).read()

    def _find(self, name: str) -> _Stored:
        if name not in self._tensors:
            raise UnknownName.among("tensor", name, self._tensors)
        return self._tensors[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors = {}  # the last references to the open files


def _held(tensor: Tensor) -> _Stored:
    tensor = tensor.detach()
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    return _Stored(tuple(tensor.shape), tensor.dtype, tensor.cpu, place)


def _safetensors(path: Path) -> dict[str, _Stored]:
    """The tensors of one file whose header has been checked against its size."""
    entries, start = _header(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    found = {}
    for name, entry in entries.items():
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        found[name] = _Stored(shape, dtype, partial(_mapped, mapped, start + entry["data_offsets"][0], shape, dtype))
    return found


def _mapped(mapped: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor at an offset of a mapped file, as a view of it.

    What was read of the file before leaves memory first, or in the end all of it would lie there; a tensor that is
    still held is read again when it is looked at.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    if hasattr(mapped, "madvise"):  # not on Windows
        mapped.madvise(mmap.MADV_DONTNEED)
    numbers = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=offset)
    return (numbers.clone() if offset % dtype.itemsize else numbers).view(dtype).view(shape)


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What the header says of each tensor, and where the first begins.

    dtype, shape and data_offsets, which tile the rest of the file exactly.
    """
    where, size = home_free(path), path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise CheckpointError(
                f"{where} is no whole safetensors file: its header should have {length:,} bytes, the file has {size:,}"
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where}: the header is no valid JSON, so the file is damaged") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{where}: the header is no JSON object, so the file is damaged")
    header.pop("__metadata__", None)
    spans = [(*_span(entry, f"{where}: {name}"), name) for name, entry in header.items()]
    position = 0
    for start, stop, name in sorted(spans):
        if start != position:
            what = "overlaps the tensor before it" if start < position else "leaves a gap before it"
            raise CheckpointError(f"{where}: {name} begins at byte {start:,} and {what}, so the file is damaged")
        position = stop
    if position != size - 8 - length:
        raise CheckpointError(
            f"{where}: the tensors need {position:,} bytes, the file has {size - 8 - length:,} for them; "
            "it is cut off or damaged"
        )
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes twice could hide a tensor."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _span(entry: Any, where: str) -> tuple[int, int]:
    """First and last byte of a tensor, which agree with its shape and dtype."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if shape is None or offsets is None or not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{where} has no dtype, shape and data_offsets in the header, so the file is damaged")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where} has the dtype {dtype!r}, which cannot be read; known: {', '.join(DTYPES)}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{where} of shape {tuple(shape)} and dtype {dtype} needs {needed:,} bytes, "
            f"its place in the file has {offsets[1] - offsets[0]:,}"
        )
    return offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    """Whether `value` is a list of whole numbers from 0 (True and False are none)."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _torch(path: Path) -> dict[str, _Stored]:
    """The tensors of a file written by torch.save; everything else in it is left where it is."""
    found = _unpickled(path)
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{home_free(path)} holds no tensors by name: needed a state dictionary of a model")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{home_free(path)}: {name} is no plain tensor, and only those can be compared")
        if tensor.numel() * tensor.itemsize > size:
            raise CheckpointError(
                f"{home_free(path)}: {name} of shape {tuple(tensor.shape)} claims more numbers than the file holds"
            )
    return {name: _held(tensor) for name, tensor in tensors.items()}


def _unpickled(path: Path) -> Any:
    """The content of a torch file by the loader that admits tensors and plain values only."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        # Older files are no zip archives; those cannot be mapped into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, CheckpointError):
        raise
    except Exception as error:  # what a damaged pickle raises has no common root below Exception
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code is None:
            raise CheckpointError(f"{home_free(path)} is damaged, or was not written by torch.save") from error
        raise CheckpointError(
            f"{home_free(path)} names code ({code[1]}) that loading it would run, so it is not loaded; if you trust "
            f"its source, convert it once, in its folder: {CONVERT} {shlex.quote(path.name)}"
        ) from error


def _check_archive(path: Path) -> None:
    """CheckpointError for compressed entries: torch writes none, and a small file could unpack to terabytes."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise CheckpointError(f"{home_free(path)}: {entry.filename} is compressed; torch.save writes it plain")
