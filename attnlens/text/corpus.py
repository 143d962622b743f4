"""Corpora: examples read from JSONL or CSV, every row checked at the door."""

import csv
import hashlib
import io
import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from attnlens.core.errors import CorpusError, UnknownName


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text that matter, with the name of what they are."""

    start: int
    end: int
    label: str | None = None


@dataclass(frozen=True)
class Example:
    """One text. `document` is its cluster for the statistics; `spans` is None where the data has none."""

    text: str
    id: str
    document: str
    label: str | None = None
    spans: tuple[Span, ...] | None = None


@dataclass(frozen=True)
class Corpus:
    """Examples in file order, with the sha256 of the file they came from."""

    examples: tuple[Example, ...]
    name: str
    checksum: str
    has_documents: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, sorted."""
        return tuple(sorted({example.label for example in self if example.label is not None}))

    def select(self, indices: Iterable[int]) -> "Corpus":
        """The examples at `indices`, in that order."""
        return replace(self, examples=tuple(self.examples[index] for index in indices))

    def sample(self, limit: int, seed: int) -> "Corpus":
        """At most `limit` examples, spread over the documents, in file order.

        Documents in random order give one random example each, then a second each, and so on: the numbers taken
        from two documents differ by more than one only where the smaller one is used up. A smaller limit with
        the same seed gives a subset.
        """
        if limit < 1:
            raise CorpusError(f"a sample needs at least 1 example; got a limit of {limit}. Raise the limit.")
        order = np.random.default_rng(seed).permutation(len(self))
        taken = Counter[str]()
        rounds = np.empty(len(self), dtype=np.int64)
        for place, index in enumerate(order):
            document = self.examples[index].document
            rounds[place] = taken[document]
            taken[document] += 1
        return self.select(np.sort(order[np.argsort(rounds, kind="stable")][:limit]).tolist())


def _name(value: object) -> object:
    """Whole numbers become strings; a blank cell is no value."""
    if isinstance(value, int):
        return str(value)
    return None if isinstance(value, str) and not value.strip() else value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "the text is empty")
    return text


def _whole(value: str | None) -> str | None:
    """JSON can escape half a character, which no tokenizer takes and no file can hold."""
    try:
        (value or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise PydanticCustomError("half", "half of a surrogate pair") from error
    return value


def _from_json(value: object) -> object:
    """CSV cells hold spans as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("json", "the cell is not JSON") from error


Name = Annotated[str | None, BeforeValidator(_name), AfterValidator(_whole)]


class _SpanRow(BaseModel):
    model_config = ConfigDict(strict=True)
    start: int
    end: int
    label: Name = None


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)
    text: Annotated[str, AfterValidator(_not_blank), AfterValidator(_whole)]
    id: Name = None
    document: Name = None
    label: Name = None
    spans: Annotated[list[_SpanRow] | None, BeforeValidator(_from_json)] = None


FIELDS = tuple(_Row.model_fields)
_SPANS_NEEDED = 'Give spans as [{"start": 0, "end": 5, "label": "term"}], in characters, end exclusive.'
_NEEDED = {
    "text": "Give the text as a non-empty string, or remove the row.",
    "id": "Give a string or a whole number, or leave it out.",
    "document": "Give a string or a whole number, or leave it out.",
    "label": "Give a string or a whole number, or leave it out.",
    "spans": _SPANS_NEEDED,
}
Rows = Iterator[tuple[int, dict[str, object]]]


def _jsonl_rows(content: str, path: Path) -> Rows:
    # Not splitlines(): it also cuts at U+2028 and U+0085, which JSON strings may hold as they are.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
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
        yield number, row


def _csv_rows(content: str, path: Path) -> Rows:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    number = 0
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


_READERS: dict[str, Callable[[str, Path], Rows]] = {".jsonl": _jsonl_rows, ".csv": _csv_rows}


def _example(raw: dict[str, object], number: int, path: Path, columns: Mapping[str, str]) -> tuple[Example, bool]:
    """The checked example of one row, and whether the row names its document."""
    where = f"{path}, row {number}"
    if columns["text"] not in raw:
        raise CorpusError(
            f"{where}, field text: needs a column {columns['text']!r}; the columns are "
            f"{', '.join(map(repr, raw))}. Name the right one with --text-column."
        )
    try:
        row = _Row.model_validate({field: raw[column] for field, column in columns.items() if column in raw})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CorpusError(
            f"{where}, field {field}: {first['msg']}; got {reprlib.repr(first['input'])}. "
            f"{_NEEDED[str(first['loc'][0])]}"
        ) from error
    for place, span in enumerate(row.spans or ()):
        if not 0 <= span.start < span.end <= len(row.text):
            fault = "is empty or reversed" if span.end <= span.start else "lies outside its text"
            raise CorpusError(
                f"{where}, field spans.{place}: the span from {span.start} to {span.end} {fault} of "
                f"{len(row.text)} characters. {_SPANS_NEEDED}"
            )
    spans = None if row.spans is None else tuple(Span(span.start, span.end, span.label) for span in row.spans)
    identity = row.id or str(number)
    return Example(row.text, identity, row.document or identity, row.label, spans), row.document is not None


def _content(path: Path) -> tuple[str, str]:
    """Text and sha256 of a file, a byte order mark removed."""
    if not path.exists():
        raise CorpusError(f"{path}: needs a data file; there is none at this path. Check the path.")
    if path.suffix.lower() not in _READERS or not path.is_file():
        kind = "a folder" if path.is_dir() else repr(path.suffix) if path.suffix else "a name without suffix"
        raise CorpusError(
            f"{path}: needs a file whose name ends in {' or '.join(_READERS)}; got {kind}. "
            "Convert the data, one example a row."
        )
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise CorpusError(f"{path}: needs a readable file; got: {error.strerror}. Check its rights.") from error
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: needs UTF-8; byte {error.start} is not ({error.reason}). Save the file as UTF-8."
        ) from error


def read_corpus(path: str | Path, *, columns: Mapping[str, str] | None = None) -> Corpus:
    """Read a JSONL or CSV file, one example a row.

    Fields: text (needed), id, document, label, spans ([{"start", "end", "label"}] in characters, end exclusive;
    in CSV as a JSON string). `columns` maps a field to the file's column, as {"text": "sentence"}. Rows without
    id are numbered: lines of JSONL, rows below the header of CSV, from 1. Rows without document stand alone.
    """
    path, columns = Path(path), dict(columns or {})
    for field in columns:
        if field not in FIELDS:
            raise UnknownName.among("field", field, FIELDS)
    content, checksum = _content(path)
    named = {field: columns.get(field, field) for field in FIELDS}
    examples, lonely, present = list[Example](), list[int](), set[str]()
    for number, raw in _READERS[path.suffix.lower()](content, path):
        example, has_document = _example(raw, number, path, named)
        examples.append(example)
        lonely += [] if has_document else [number]
        present.update(raw)
    if not examples:
        raise CorpusError(f"{path}: needs at least one example; the file holds none. Add rows.")
    for field, column in columns.items():
        if column not in present:
            known = ", ".join(map(repr, sorted(present)))
            raise CorpusError(
                f"{path}, field {field}: needs a column {column!r}; the columns are {known}. "
                f"Name the right one with --{field}-column."
            )
    if 0 < len(lonely) < len(examples):
        raise CorpusError(
            f"{path}, row {lonely[0]}, field document: needs every row to name its document, or none; "
            f"{len(lonely)} of {len(examples)} do not. Fill them in, or leave the column out."
        )
    return Corpus(tuple(examples), path.name, checksum, not lonely)
