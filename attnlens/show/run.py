"""The whole job: checkpoints in, report folder out; resumes after a kill, never touches another run's folder."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlens import __version__
from attnlens.analysis.compare import CompareOptions, compare, slug
from attnlens.analysis.results import Comparison, open_comparison
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError, OutputExists
from attnlens.show.files import write
from attnlens.show.report import report
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded
from attnlens.training.record import read_record, recorded_corpus

RUN = "run.json"
PARTS = "parts"


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    data: the corpus; None takes the held-out data named in the first tuned model's training record, failing that the
    embedded probe sentences. output: the folder; None makes report-BASE-vs-TUNED. text: keep example texts in the
    report. force: replace another run's report. names: what to call base and tuned. notes: lines that page one must
    say first. The rest is CompareOptions.
    """

    data: str | Path | None = None
    output: str | Path | None = None
    salience: tuple[str, ...] | None = None
    limit: int | None = 200
    max_length: int = 512
    batch_size: int = 16
    rows: str | None = None
    seed: int = 0
    text: bool = True
    columns: Mapping[str, str] | None = None
    device: str = "cpu"
    dtype: str | None = None
    force: bool = False
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    announce: Callable[[str], None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class ReportResult:
    """A finished report: the comparison, its folder, and whether it had been complete before."""

    comparison: Comparison
    directory: Path
    was_complete: bool

    @property
    def page(self) -> Path:
        """The report to open."""
        return self.directory / "report.html"


def run_report(checkpoints: Sequence[str | Path], options: ReportOptions | None = None) -> ReportResult:
    """Compare BASE with TUNED checkpoints and write the report; a single checkpoint names its base in its record.

    The same question asked again resumes or returns the finished report; another one in the same folder raises
    OutputExists. Nothing is written where the question itself is at fault.
    """
    options = ReportOptions() if options is None else options
    base, *tuned = _with_base(checkpoints)
    corpus, background, probe = _corpora(tuned[0], options)
    models = _load(base, tuned, options)
    directory = Path(options.output or f"report-{slug(models[0].name)}-vs-{slug(models[1].name)}")
    key = _key(models, corpus, background, options)
    if _is_complete(directory, key, options.force):
        return ReportResult(open_comparison(directory), directory, was_complete=True)
    if options.announce is not None:
        texts = len(corpus) if options.limit is None else min(options.limit, len(corpus))
        options.announce(
            f"{corpus.name}: measuring {texts} of {len(corpus)} texts, at most {options.max_length} tokens each, "
            f"in {len(models)} models"
        )
    with _claimed(directory, key, options.force):
        comparison = compare(
            models[0],
            models[1:],
            corpus=corpus,
            salience=options.salience,
            options=CompareOptions(
                limit=options.limit,
                max_length=options.max_length,
                batch_size=options.batch_size,
                rows=options.rows,
                seed=options.seed,
                background=background,
                passages=8 if options.text else 0,
                parts=directory / PARTS,
                probe=probe,
                progress=options.progress,
            ),
        )
        comparison.provenance["warnings"][:0] = options.notes
        comparison.save(directory)
        report(comparison, directory)
    return ReportResult(comparison, directory, was_complete=False)


def _with_base(checkpoints: Sequence[str | Path]) -> list[str | Path]:
    """Base first; a lone tuned checkpoint brings it in its record."""
    if len(checkpoints) > 1:
        return list(checkpoints)
    if not checkpoints:
        raise CheckpointError("needed a base and a tuned checkpoint, got none")
    record = read_record(checkpoints[0]) if Path(checkpoints[0]).is_dir() else None
    if record is None:
        raise CheckpointError(
            f"{checkpoints[0]} has no training record that names its base: give both, attnlens report BASE TUNED"
        )
    return [str(Path(record["base"]["path"]).expanduser()), checkpoints[0]]


def _corpora(tuned: str | Path, options: ReportOptions) -> tuple[Corpus, Corpus | None, bool]:
    """The texts to measure, the training split for keyness, and whether the texts are the embedded probe."""
    record = read_record(tuned) if Path(tuned).is_dir() else None
    if options.data is not None:
        corpus = read_corpus(options.data, columns=options.columns)
        try:
            background = None if record is None else recorded_corpus(record, "train")
        except CorpusError:
            background = None  # the training file has moved or changed: keyness counts on the texts at hand
        return corpus, background, False
    held = None if record is None else recorded_corpus(record, "heldout")
    if record is not None and held is not None:
        return held, recorded_corpus(record, "train"), False
    return read_corpus(embedded("probe")), None, True


def _load(base: str | Path, tuned: Sequence[str | Path], options: ReportOptions) -> list[Checkpoint]:
    names = options.names or (None,) * (1 + len(tuned))
    first = load(base, name=names[0], device=options.device, dtype=options.dtype)
    others = [
        load(source, name=name, tokenizer=first.tokenizer, device=options.device, dtype=options.dtype)
        for source, name in zip(tuned, names[1:], strict=True)
    ]
    return [first, *others]


def _key(models: Sequence[Checkpoint], corpus: Corpus, background: Corpus | None, options: ReportOptions) -> str:
    """What makes two runs the same: weights, texts, options that change numbers, version."""
    identity = {
        "attnlens": __version__,
        "models": [
            [model.name, *(str(model.provenance[name]) for name in ("sha256", "revision", "dtype"))] for model in models
        ],
        "texts": hashlib.sha256(repr([vars(example) for example in corpus]).encode()).hexdigest(),
        "background": None if background is None else [background.checksum, len(background)],
        "options": {
            name: getattr(options, name)
            for name in ("salience", "limit", "max_length", "batch_size", "rows", "seed", "text", "device")
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _is_complete(directory: Path, key: str, force: bool) -> bool:
    """True for a finished report of this run; OutputExists for a folder that holds something else."""
    if not directory.exists() or not any(directory.iterdir()):
        return False
    state = _state(directory)
    if state.get("key") == key:
        return bool(state.get("complete"))
    if not force:
        what = "another run's report" if state else "other files"
        raise OutputExists(f"{directory} holds {what}: choose another -o DIR, or replace it with --force")
    return False


def _state(directory: Path) -> dict[str, Any]:
    path = directory / RUN
    return json.loads(path.read_text()) if path.is_file() else {}


@contextmanager
def _claimed(directory: Path, key: str, force: bool) -> Iterator[None]:
    """The folder marked as this run's while it works; a user's fault leaves nothing behind."""
    existed = directory.exists()
    state = _state(directory) if existed else {}
    if force and state and state.get("key") != key:
        shutil.rmtree(directory)
    resuming = state.get("key") == key
    for leftover in directory.glob(".*") if resuming else ():  # a kill can leave half-written files
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / RUN, json.dumps({"key": key, "complete": False}).encode())
    try:
        yield
    except AttnlensError:
        if not resuming:
            (directory / RUN).unlink()
            shutil.rmtree(directory / PARTS, ignore_errors=True)
            if not existed:
                shutil.rmtree(directory)
        raise
    write(directory / RUN, json.dumps({"key": key, "complete": True}).encode())
    shutil.rmtree(directory / PARTS)
