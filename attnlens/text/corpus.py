"""Corpora: examples read from a data file, every row checked at the door."""

import dataclasses
import hashlib
import json
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from attnlens.core.errors import CorpusError, UnknownName
from attnlens.text.readers import Row, corpus_checksum, raw_rows

__all__ = ["Corpus", "Example", "Span", "corpus_checksum", "read_corpus"]


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text that matter, with the name of what they are."""

    start: int
    end: int
    label: str | None = None


@dataclass(frozen=True)
class Example:
    """One text. `document` is its cluster for the statistics; `spans` is None where the data has none.

    completion: the character at which the completion starts, `text` being prompt + completion; None where all is one.
    messages: (role, content) of a conversation's turns. Until a chat template has rendered it (attnlens.text.chat),
    `text` is the contents joined by line ends. labels: where a text may have several or none, in place of `label`.
    """

    text: str
    id: str
    document: str
    label: str | None = None
    spans: tuple[Span, ...] | None = None
    completion: int | None = None
    messages: tuple[tuple[str, str], ...] | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Corpus:
    """Examples in file order, with the checksum of the file or folder they came from (`corpus_checksum`).

    total: of a sample, how many examples it was drawn from.
    """

    examples: tuple[Example, ...]
    name: str
    checksum: str
    has_documents: bool
    total: int | None = dataclasses.field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that occurs alone, sorted; not those of rows with a list of labels."""
        return tuple(sorted({example.label for example in self if example.label is not None}))

    def select(self, indices: Iterable[int]) -> "Corpus":
        """The examples at `indices`, in that order."""
        return replace(self, examples=tuple(self.examples[index] for index in indices), total=None)

    def sample(self, limit: int, seed: int) -> "Corpus":
        """At most `limit` examples, spread over the documents, in file order.

        Documents in random order give one random example each, then a second each, and so on: the numbers taken
        from two documents differ by more than one only where the smaller one is used up. A smaller limit with
        the same seed gives a subset.
        """
        _check_limit(limit)
        drawn = _drawn(array("q", map(_digest, self)), limit, seed)
        return replace(self.select(drawn), total=len(self))


def _digest(example: Example) -> int:
    """Eight bytes that tell its document from all others."""
    name = str(example.document).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise CorpusError(f"a sample needs at least 1 example; got a limit of {limit}. Raise the limit.")


def _drawn(documents: Sequence[int], limit: int, seed: int) -> list[int]:
    """Places of the examples of a sample, ascending, from the digest of each one's document."""
    order = np.random.default_rng(seed).permutation(len(documents))
    shuffled = np.asarray(documents)[order]
    by_document = np.argsort(shuffled, kind="stable")
    _, sizes = np.unique(shuffled, return_counts=True)
    rounds = np.empty_like(order)  # of an example, how many of its document come before it
    rounds[by_document] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.argsort(rounds, kind="stable")][:limit]).tolist()


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
    """CSV cells hold lists as a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("json", "the cell is not JSON") from error


Name = Annotated[str | None, BeforeValidator(_name), AfterValidator(_whole)]
Text = Annotated[str, AfterValidator(_not_blank), AfterValidator(_whole)]
Label = Annotated[str, BeforeValidator(_name), AfterValidator(_whole)]


class _SpanRow(BaseModel):
    model_config = ConfigDict(strict=True)
    start: int
    end: int
    label: Name = None


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Text
    content: Annotated[str, AfterValidator(_whole)]


class _Row(BaseModel):
    """The cells of one row; those of one form of text only, so the empty defaults of the others are never read."""

    model_config = ConfigDict(strict=True)
    text: Text = ""
    prompt: Text = ""
    completion: Text = ""
    messages: Annotated[list[_Message], BeforeValidator(_from_json), Field(min_length=1)] = []
    id: Name = None
    document: Name = None
    label: Name = None
    labels: list[Label] | None = None  # of the label's column, where that holds a list
    spans: Annotated[list[_SpanRow] | None, BeforeValidator(_from_json)] = None


FIELDS = tuple(field for field in _Row.model_fields if field != "labels")
FORMS = (("text",), ("prompt", "completion"), ("messages",))  # a row holds its text in one of them
OTHER_FORMS = "--prompt-column and --completion-column, or --messages-column"
_SPANS_NEEDED = 'Give spans as [{"start": 0, "end": 5, "label": "term"}], in characters, end exclusive.'
_TEXT_NEEDED = "Give the {} as a non-empty string, or remove the row."
_NAME_NEEDED = "Give a string or a whole number, or leave it out."
_NEEDED = {
    **{field: _TEXT_NEEDED.format(field) for field in ("text", "prompt", "completion")},
    "messages": 'Give messages as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
    **dict.fromkeys(("id", "document", "label"), _NAME_NEEDED),
    "labels": "Give a list of names, empty where none fits; in CSV as JSON.",
    "spans": _SPANS_NEEDED,
}


def _sources(columns: Mapping[str, str]) -> dict[str, str]:
    """Column of each field that is read: the named one, else that of the field's own name.

    A column that was named for one field is no other's by default, and where fields of a form of text are named, the
    other forms are left unread.
    """
    for field in columns:
        if field not in FIELDS:
            raise UnknownName.among("field", field, FIELDS)
    chosen = [form for form in FORMS if set(form) & set(columns)] or FORMS
    unread = {field for form in FORMS if form not in chosen for field in form}
    taken = set(columns.values())
    named = {field: columns.get(field, field) for field in FIELDS if field not in unread}
    return {field: column for field, column in named.items() if field in {*columns, "text"} or column not in taken}


def _form(raw: Row, where: str, sources: Mapping[str, str]) -> tuple[str, ...]:
    """The one form in which the row holds its text."""
    forms = [form for form in FORMS if all(field in sources for field in form)]
    given = [form for form in forms if any(_filled(raw.get(sources[field])) for field in form)]
    if len(given) > 1:
        raise CorpusError(
            f"{where}: needs its text in one form; got {' and '.join(' + '.join(form) for form in given)}. "
            f"Leave one out, or name the columns to read, as with --{given[0][0]}-column."
        )
    (form,) = given or [next((form for form in forms if sources[form[0]] in raw), forms[0])]
    for field in form:
        if sources[field] not in raw:
            others = "" if given or len(forms) < len(FORMS) else f", or {OTHER_FORMS}"
            raise CorpusError(
                f"{where}, field {field}: needs a column {sources[field]!r}; the columns are "
                f"{', '.join(map(repr, raw))}. Name the right one with --{field}-column{others}."
            )
    return form


def _filled(value: object) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _example(raw: Row, where: str, number: int, sources: Mapping[str, str]) -> tuple[Example, bool]:
    """The checked example of one row, and whether the row names its document."""
    form = _form(raw, where, sources)
    unread = {field for fields in FORMS if fields != form for field in fields}
    cells = {field: raw[column] for field, column in sources.items() if column in raw and field not in unread}
    if (several := _several(cells.get("label"))) is not None:
        cells = {**cells, "label": None, "labels": several}
    try:
        row = _Row.model_validate(cells)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CorpusError(
            f"{where}, field {field}: {first['msg']}; got {reprlib.repr(first['input'])}. "
            f"{_NEEDED[str(first['loc'][0])]}"
        ) from error
    text = row.text + row.prompt + row.completion + "\n".join(message.content for message in row.messages)
    _check_spans(row, len(text), where)
    example = Example(
        text,
        row.id or str(number),
        row.document or row.id or str(number),
        row.label,
        None if row.spans is None else tuple(Span(span.start, span.end, span.label) for span in row.spans),
        len(row.prompt) if row.completion else None,
        tuple((message.role, message.content) for message in row.messages) or None,
        None if row.labels is None else tuple(dict.fromkeys(row.labels)),
    )
    return example, row.document is not None


def _several(cell: object) -> list[Any] | None:
    """The labels of a cell that holds a list of them, in CSV as JSON; None where it holds one label."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None  # a name that begins with a bracket
    return cell if isinstance(cell, list) else None


def _check_spans(row: _Row, length: int, where: str) -> None:
    if row.spans and row.messages:
        raise CorpusError(
            f"{where}, field spans: needs a text whose characters can be counted; a chat template decides where those "
            "of messages stand. Give prompt and completion instead, or leave the spans out."
        )
    for place, span in enumerate(row.spans or ()):
        if not 0 <= span.start < span.end <= length:
            fault = "is empty or reversed" if span.end <= span.start else "lies outside its text"
            raise CorpusError(
                f"{where}, field spans.{place}: the span from {span.start} to {span.end} {fault} of "
                f"{length} characters. {_SPANS_NEEDED}"
            )


def read_corpus(
    path: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None, seed: int = 0
) -> Corpus:
    """Read JSONL, CSV, Parquet, plain text or a folder of `datasets`, one example a row.

    Fields: text, or prompt and completion (joined as they stand), or messages ([{"role", "content"}]), one of the
    three in each row; id, document, label (one, or a list of labels), spans ([{"start", "end", "label"}] in characters
    of the joined text, end exclusive). In CSV, messages, spans and lists of labels are JSON strings. Plain text: each
    passage between blank lines is an example that stands alone, as it names no document; of a `datasets` folder with
    splits, one is named.
    `columns` maps a field to the file's column, as {"text": "sentence"}. Rows without id are numbered: lines of JSONL,
    first lines of passages, else rows from 1. Rows without document stand alone.
    limit, seed: keep what `sample` would, and of all other rows, which are checked too, eight bytes.
    """
    path, columns = Path(path), dict(columns or {})
    sources = _sources(columns)
    if limit is None:
        examples = list[Example]()
        has_documents = _scan(path, columns, sources, examples.append)
        return Corpus(tuple(examples), path.name, corpus_checksum(path), has_documents)
    _check_limit(limit)
    documents = array("q")
    has_documents = _scan(path, columns, sources, lambda example: documents.append(_digest(example)))
    checksum = corpus_checksum(path)
    marks = np.zeros(len(documents), dtype=bool)
    marks[_drawn(documents, limit, seed)] = True
    rows = compress(raw_rows(path, set(sources.values())), marks)
    kept = tuple(_example(raw, f"{path}, row {number}", number, sources)[0] for number, raw in rows)
    if corpus_checksum(path) != checksum:
        raise CorpusError(f"{path}: has changed while it was read. Try again when it is written.")
    return Corpus(kept, path.name, checksum, has_documents, len(documents))


def _scan(
    path: Path, columns: Mapping[str, str], sources: Mapping[str, str], keep: Callable[[Example], object]
) -> bool:
    """Check every row of a file and pass on its example; whether rows name their documents."""
    rows, lonely, first_lonely, present = 0, 0, 0, set[str]()
    for number, raw in raw_rows(path, set(sources.values())):
        example, has_document = _example(raw, f"{path}, row {number}", number, sources)
        keep(example)
        rows += 1
        if not has_document:
            lonely, first_lonely = lonely + 1, first_lonely or number
        present.update(raw)
    if not rows:
        raise CorpusError(f"{path}: needs at least one example; the file holds none. Add rows.")
    for field, column in columns.items():
        if column not in present:
            known = ", ".join(map(repr, sorted(present)))
            raise CorpusError(
                f"{path}, field {field}: needs a column {column!r}; the columns are {known}. "
                f"Name the right one with --{field}-column."
            )
    if 0 < lonely < rows:
        raise CorpusError(
            f"{path}, row {first_lonely}, field document: needs every row to name its document, or none; "
            f"{lonely} of {rows} do not. Fill them in, or leave the column out."
        )
    return not lonely
