"""Data files as raw rows: JSONL, CSV, Parquet, plain text and the folders of `datasets`; and their checksum."""

import csv
import hashlib
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from attnlens.core.errors import CorpusError

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
BLOCK = 1_000  # rows of a typed file in memory at a time
# What save_to_disk writes: one of a data set, the other of a folder with one data set a split.
STATE, SPLITS = "state.json", "dataset_dict.json"


def raw_rows(path: Path, wanted: Collection[str]) -> Rows:
    """Number and cells of each row, every column named; of typed files only the `wanted` columns hold values.

    Rows are numbered from 1 so that an editor finds them: lines of JSONL, first lines of plain text's passages, rows
    below the header of CSV, rows of Parquet and `datasets`.
    """
    check_readable(path)
    if path.is_dir():
        return _datasets_rows(path, wanted)
    return _READERS[path.suffix.lower()](path, wanted)


def check_readable(path: Path) -> None:
    """Refuse what is no data file and no data set of `datasets`."""
    if not path.exists():
        raise CorpusError(f"{path}: needs a data file; there is none at this path. Check the path.")
    if (path / SPLITS).is_file():
        splits = [str(path / str(name)) for name in _json(path / SPLITS).get("splits", [])]
        raise CorpusError(
            f"{path}: needs one data set; got a folder of {len(splits)} splits. Name one: {', '.join(splits)}."
        )
    if (path / STATE).is_file() or (path.is_file() and path.suffix.lower() in _READERS):
        return
    kind = "a folder" if path.is_dir() else repr(path.suffix) if path.suffix else "a name without suffix"
    raise CorpusError(
        f"{path}: needs a file whose name ends in {' or '.join(_READERS)}, or a folder written by save_to_disk; "
        f"got {kind}. Convert the data, one example a row."
    )


def corpus_checksum(path: str | Path) -> str:
    """SHA-256 of a data file; of a `datasets` folder, that of the list its files would give `sha256sum`.

    The list holds the files of the data set alone: caches that `datasets` leaves in the folder do not count.
    """
    path = Path(path)
    check_readable(path)
    try:
        if path.is_file():
            return _sha256(path)
        names = [
            STATE,
            "dataset_info.json",
            *(Path(file["filename"]).name for file in _json(path / STATE)["_data_files"]),
        ]
        listing = "".join(f"{_sha256(path / name)}  {name}\n" for name in sorted(names))
    except (OSError, KeyError, TypeError) as error:
        raise CorpusError(
            f"{path}: needs readable data; got: {_reason(error)}. Check its rights, or save it again."
        ) from error
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(
            f"{path}: needs the JSON that save_to_disk writes; got: {_reason(error)}. Save it again."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").split())[:200]


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    """The file to be read line by line, a byte order mark removed; newline: as of `open`."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except OSError as error:
        raise CorpusError(f"{path}: needs a readable file; got: {error.strerror}. Check its rights.") from error
    except UnicodeDecodeError as error:
        fault = error
        try:
            path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as whole:  # the other knows its place in a block alone
            fault = whole
        raise CorpusError(
            f"{path}: needs UTF-8; byte {fault.start} is not ({fault.reason}). Save the file as UTF-8."
        ) from error


def _jsonl_rows(path: Path, wanted: Collection[str]) -> Rows:
    # Not splitlines(): it also cuts at U+2028 and U+0085, which JSON strings may hold as they are.
    with _opened(path, "\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _json_row(path, number, line.removesuffix("\n"))


def _json_row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            f"{path}, row {number}: needs one JSON object a line; got {reprlib.repr(line)} ({error}). "
            "Write the file as JSONL."
        ) from error
    if not isinstance(row, dict):
        raise CorpusError(
            f"{path}, row {number}: needs one JSON object a line; got {reprlib.repr(row)}. "
            'Write rows as {"text": "…"}.'
        )
    return row


def _csv_rows(path: Path, wanted: Collection[str]) -> Rows:
    with _opened(path, "") as file:
        reader, number = csv.reader(file, strict=True), 0
        try:
            header = next(reader, [])
            twice = [column for column, count in Counter(header).items() if count > 1]
            if twice:
                raise CorpusError(f"{path}: needs one column of each name; {twice[0]!r} occurs twice. Rename one.")
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                if len(cells) != len(header):
                    raise CorpusError(
                        f"{path}, row {number}: needs {len(header)} cells as in the header; got {len(cells)}. "
                        "Put cells that hold commas or line breaks in double quotes."
                    )
                yield number, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise CorpusError(
                f"{path}, row {number + 1}: needs CSV with cells of at most {csv.field_size_limit():,} characters; "
                f"got: {error}. Mend the quotes, or write the file as JSONL."
            ) from error


def _text_rows(path: Path, wanted: Collection[str]) -> Rows:
    """Passages between blank lines, each a row of its own: plain text does not say which belong to one document."""
    with _opened(path, "\n") as file:
        lines = ((number, _without_end(line)) for number, line in enumerate(file, start=1))
        for blank, passage in groupby(lines, lambda line: not line[1].strip()):
            if not blank:
                (first, start), *others = passage
                yield first, {"text": "\n".join([start, *(line for _, line in others)])}


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line


def _parquet_rows(path: Path, wanted: Collection[str]) -> Rows:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _table_rows(file.schema_arrow.names, file.iter_batches(BLOCK), wanted, {})
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # also texts that are not UTF-8
        reason = getattr(error, "strerror", None)  # only the system's own reasons are for a user
        fault = f"this one cannot be read: {reason}" if reason else "this one is damaged, or no Parquet"
        raise CorpusError(f"{path}: needs a Parquet file; {fault}. Write it again.") from error


def _datasets_rows(path: Path, wanted: Collection[str]) -> Rows:
    import datasets
    import pyarrow

    try:
        data = datasets.load_from_disk(str(path))
        assert isinstance(data, datasets.Dataset)
        classes = {
            name: dict(enumerate(feature.names))
            for name, feature in data.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }
        tables = data.with_format("arrow").iter(BLOCK)
        yield from _table_rows(data.column_names, tables, wanted, classes)  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pyarrow.ArrowException) as error:
        raise CorpusError(
            f"{path}: needs a data set written by save_to_disk; got: {_reason(error)}. Save it again."
        ) from error


def _table_rows(
    names: list[str],
    tables: "Iterator[pyarrow.Table | pyarrow.RecordBatch]",
    wanted: Collection[str],
    classes: dict[str, dict[int, str]],
) -> Rows:
    """Plain Python values of the wanted columns; numbered classes get their names, −1 (no class) none."""
    read = [name for name in names if name in wanted]
    number = 0
    for table in tables:
        columns = [table.column(name).to_pylist() for name in read]
        for values in zip(*columns, strict=True) if columns else [()] * table.num_rows:
            number += 1
            cells = {
                name: classes[name].get(value) if name in classes else value
                for name, value in zip(read, values, strict=True)
            }
            yield number, dict.fromkeys(names) | cells


_READERS: dict[str, Callable[[Path, Collection[str]], Rows]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
