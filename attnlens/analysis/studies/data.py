"""The rows of a study, as files that every cell reads: chosen labels, windows around spans, a sample."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attnlens.analysis.studies.file import DataPart
from attnlens.checkpoints.files import write
from attnlens.checkpoints.load import read_tokenizer
from attnlens.checkpoints.packaged import encoder
from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.text.corpus import Corpus, corpus_checksum, read_corpus
from attnlens.text.embedded import embedded
from attnlens.text.windows import commonest, labelled, windowed
from attnlens.training.split import CLASSIFICATION, task_of

OURS, ENCODER, ROOT = "attnlens:", "all-MiniLM-L6-v2", "{data_root}"


class File(NamedTuple):
    """A data file with its checksum."""

    path: Path
    sha256: str


class Files(NamedTuple):
    """What a model is trained and tested on."""

    train: File
    test: File


@dataclass(frozen=True)
class Places:
    """Where names of files in a study lead: beside the study file, under --data-root, or into attnlens."""

    beside: Path
    data_root: Path | None

    def of_model(self, name: str) -> str:
        """A folder, or a hub id."""
        if name == OURS + ENCODER:
            return str(encoder())
        path = self._path(name)
        return str(path) if path.exists() else name

    def of_data(self, name: str) -> Path:
        """A data file that is there."""
        if name.startswith(OURS):
            return embedded(name.removeprefix(OURS))
        path = self._path(name)
        if not path.exists():
            raise CorpusError(f"{path}, which the study names, is not there")
        return path

    def _path(self, name: str) -> Path:
        if ROOT in name and self.data_root is None:
            raise AttnlensError(f"the study reads {name}: add --data-root DIR")
        path = Path(name.replace(ROOT, str(self.data_root))).expanduser()
        return path if path.is_absolute() else self.beside / path


def prepared(part: DataPart, model: str, places: Places, folder: Path, *, task: str | None = None) -> Files:
    """Training and test file of a data set for a model; rewritten in `folder` where rows are chosen or cut.

    Labels are chosen on the training rows, for both files. task: what was asked for. Where labels are to be told apart,
    a test row with a label that no training row has is an error, for no model could name it.
    """
    train, test = (read_corpus(places.of_data(name), columns=part.columns) for name in (part.train, part.test))
    if train.checksum == test.checksum:
        raise CorpusError(f"{part.name}: the test data are the training data, so nothing would be tested")
    if part.labels is None and task_of(train, task) == CLASSIFICATION:
        if strange := sorted({str(example.label) for example in test} - set(train.labels)):
            raise CorpusError(f"{part.name}: no training row has the label {strange[0]!r}, which test rows have")
    if part.labels is None and part.window is None and part.limit is None and part.columns is None:
        paths = [places.of_data(name) for name in (part.train, part.test)]
        return Files(*(File(path, corpus_checksum(path)) for path in paths))
    if part.labels is not None:
        labels = commonest(train, part.labels)
        train, test = labelled(train, labels), labelled(test, labels)
    if part.limit is not None:
        train = train.sample(part.limit, 0)
    if part.window is not None:
        tokenizer = read_tokenizer(model)
        train, test = (windowed(corpus, tokenizer, part.window) for corpus in (train, test))
    return Files(_written(train, folder / "train.jsonl"), _written(test, folder / "test.jsonl"))


def _written(corpus: Corpus, path: Path) -> File:
    if not len(corpus):
        raise CorpusError(f"no row of {corpus.name} is left of what the study chooses")
    lines = [json.dumps(_row(vars(example), corpus), ensure_ascii=False) + "\n" for example in corpus]
    write(path, "".join(lines).encode())
    return File(path, corpus_checksum(path))


def _row(fields: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """An example as `read_corpus` reads it."""
    row: dict[str, Any] = {"id": fields["id"], "text": fields["text"]}
    if corpus.has_documents:
        row["document"] = fields["document"]
    if fields["completion"] is not None:
        row |= {"prompt": row["text"][: fields["completion"]], "completion": row.pop("text")[fields["completion"] :]}
    if fields["messages"]:
        row = {name: value for name, value in row.items() if name != "text"}
        row["messages"] = [{"role": role, "content": content} for role, content in fields["messages"]]
    if (label := fields["label"] if fields["labels"] is None else list(fields["labels"])) is not None:
        row["label"] = label
    if fields["spans"] is not None:
        row["spans"] = [vars(span) for span in fields["spans"]]
    return row
