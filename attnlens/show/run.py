"""The whole job: checkpoints in, report folder out; resumes after a kill, never touches another run's folder."""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from attnlens import __version__
from attnlens.analysis.compare import CompareOptions, compare, share
from attnlens.analysis.results import Comparison, open_comparison
from attnlens.analysis.roles import is_null
from attnlens.checkpoints.identity import home_free, read_record, weights_sha256
from attnlens.checkpoints.load import Checkpoint, check_device, load, load_all, longest_input
from attnlens.checkpoints.remote_code import trusted, trusting
from attnlens.checkpoints.source import adapter_config, locate, names_of
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError
from attnlens.salience.lexicon import read_lexicon
from attnlens.show.folder import PAGE, PARTS, claimed, is_complete
from attnlens.show.report import report
from attnlens.show.twins import found_twins, nulls_named, recorded, twin_name, twins_last
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.text.embedded import embedded
from attnlens.training.processes import agreed, first, met, own_device
from attnlens.training.record import recorded_columns, recorded_corpus

KEYED = (
    "salience",
    "limit",
    "max_length",
    "batch_size",
    "rows",
    "memory",
    "seed",
    "text",
    "device",
    "knockout",
    "noise_band",
)
TOLD = ("sha256", "revision", "dtype", "remote_code")  # of a model's provenance
SHARED = ("limit", "max_length", "batch_size", "rows", "memory", "seed", "knockout", "noise_band", "further")
UNSAID = ("force", "names", "notes", "progress", "further", "announce")


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    data: the corpus; None takes the held-out data named in the first tuned model's training record, failing that the
    embedded probe sentences. columns: our field name → the data's column name; None takes those of the training record
    that the data has. output: the folder; None makes report-BASE-vs-TUNED. lexicon: a file of terms, one a line.
    encoder: a third model. text: keep example texts in the report. null, seeds: CompareOptions' nulls and seeds, by
    folder. force: replace another run's report. trust_remote_code: run code that checkpoints bring for an architecture
    of their own. names: what to call base and tuned. notes: lines that page one must say first. progress, further:
    called with (texts done, all texts). announce: called with a line when the work begins.
    The rest is CompareOptions.
    """

    data: str | Path | None = None
    output: str | Path | None = None
    salience: tuple[str, ...] | None = None
    lexicon: str | Path | None = None
    encoder: str | Path | None = None
    limit: int | None = 200
    max_length: int = 512
    batch_size: int = 16
    rows: str | None = None
    memory: float = CompareOptions.memory
    seed: int = 0
    text: bool = True
    columns: Mapping[str, str] | None = None
    device: str = "cpu"
    dtype: str | None = None
    config: str | Path | None = None
    tokenizer: str | Path | None = None
    null: tuple[str | Path, ...] = ()
    seeds: tuple[str | Path, ...] = ()
    knockout: bool = False
    noise_band: int = 0
    force: bool = False
    trust_remote_code: bool = False
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    further: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    announce: Callable[[str], None] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        for name, least in {"limit": 1, "max_length": 3, "batch_size": 1, "seed": 0, "noise_band": 0}.items():
            value = getattr(self, name)
            if not (value is None and name == "limit") and (not isinstance(value, int) or value < least):
                raise AttnlensError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if not 0 < self.memory < math.inf:
            raise AttnlensError(f"memory must be a number of GiB above 0; got {self.memory!r}")


@dataclass(frozen=True)
class Texts:
    """What to measure on. background: the training split, for keyness. source: what the reader is told it is."""

    corpus: Corpus
    background: Corpus | None
    source: str
    probe: bool


@dataclass(frozen=True)
class ReportResult:
    """A finished report: the comparison, its folder, and whether it had been complete before."""

    comparison: Comparison
    directory: Path
    was_complete: bool

    @property
    def page(self) -> Path:
        """The report to open."""
        return self.directory / PAGE


def run_report(checkpoints: Sequence[str | Path], options: ReportOptions | None = None) -> ReportResult:
    """Compare BASE with TUNED checkpoints and write the report; a single checkpoint names its base in its record.

    The same question asked again resumes or returns the finished report; another one in the same folder raises
    OutputExists. Nothing is written where the question itself is at fault.

    Under torchrun or accelerate launch the processes share the texts (the folder must be one that all of them see, and
    a model that hangs on one GPU lies on each); the first tests and draws, and all return the same.
    """
    options = ReportOptions() if options is None else options
    with met(), trusting(options.trust_remote_code or trusted()):
        return _run(checkpoints, options)


def _run(checkpoints: Sequence[str | Path], options: ReportOptions) -> ReportResult:
    """The report of one process among those that share it."""
    device = own_device(options.device)
    check_device(device)
    given = _with_base(checkpoints, options)
    beside = found_twins([*given, *options.null])
    lineup = _lineup(given, beside, options)
    texts = _texts(lineup.sources[1], options)
    lexicon = () if options.lexicon is None else read_lexicon(options.lexicon)
    models = load_all(
        lineup.sources,
        names=lineup.names,
        config=options.config,
        tokenizer=options.tokenizer,
        device=device,
        dtype=options.dtype,
    )
    encoder = None if options.encoder is None else load(options.encoder, device=device, dtype=options.dtype)
    tuned = models[: lineup.tuned + 1]
    alone = [model.name for model in tuned if not is_null(model.provenance.get("training"))]
    directory = Path(options.output or _folder(alone if len(alone) > 1 else [model.name for model in tuned]))
    key = _key([*models, *([] if encoder is None else [encoder])], texts, lexicon, options)
    if agreed(first() and is_complete(directory, key, force=options.force)):
        return ReportResult(open_comparison(directory), directory, was_complete=True)

    def progress(done: int, total: int) -> None:
        if done == 0 and options.announce is not None:
            if len(checkpoints) == 1:
                options.announce(f"{models[1].name} was tuned from {models[0].provenance['path']}")
            for twin in beside:
                options.announce(f"{home_free(twin)}, the shuffled twin of a tuned checkpoint, is measured too")
            options.announce(_announcement(models, texts, total, options.max_length))
        if options.progress is not None:
            options.progress(done, total)

    asked = CompareOptions(
        **{name: getattr(options, name) for name in SHARED},
        background=texts.background,
        lexicon=lexicon,
        encoder=encoder,
        passages=8 if options.text else 0,
        parts=directory / PARTS,
        probe=texts.probe,
        nulls=tuple(models[lineup.tuned + 1 : len(models) - len(options.seeds)]),
        seeds=tuple(models[len(models) - len(options.seeds) :]),
        progress=progress,
    )
    question = {"corpus": texts.corpus, "salience": options.salience, "options": asked}
    if not first():
        agreed(None)  # the folder is this run's
        share(models[0], tuned[1:], **question)
        agreed(None)  # the report is complete
        return ReportResult(open_comparison(directory), directory, was_complete=False)
    with claimed(directory, key):
        agreed(None)
        comparison = nulls_named(compare(models[0], tuned[1:], **question))
        comparison.provenance["command"] = command(checkpoints, options)
        comparison.provenance["warnings"][:0] = options.notes
        comparison.save(directory)
        report(comparison, directory)
    agreed(None)
    return ReportResult(comparison, directory, was_complete=False)


def command(checkpoints: Sequence[str | Path], options: ReportOptions) -> str:
    """The command line that asks the same question; the home directory is written as ~."""
    words = ["attnlens", "report", *(home_free(checkpoint) for checkpoint in checkpoints)]
    for option in fields(ReportOptions):
        value, name = getattr(options, option.name), option.name.replace("_", "-")
        if value == option.default or option.name in UNSAID:
            continue
        if option.name == "text":
            words.append("--no-text")
        elif value is True:
            words.append(f"--{name}")
        elif option.name in ("null", "seeds"):
            words += [word for source in value for word in (f"--{name}", home_free(source))]
        elif option.name == "columns":
            words += [word for field, column in value.items() for word in (f"--{field}-column", column)]
        else:
            plain = ",".join(value) if option.name == "salience" else value
            words += [f"--{name}", home_free(value) if isinstance(value, str | Path) else str(plain)]
    return shlex.join(words)


def _with_base(checkpoints: Sequence[str | Path], options: ReportOptions) -> list[str | Path]:
    """Base first; a lone tuned checkpoint names it, and it must be the one it was trained from."""
    if len(checkpoints) > 1:
        return list(checkpoints)
    if not checkpoints:
        raise CheckpointError("needed a base and a tuned checkpoint, got none")
    found = locate(checkpoints[0], config=options.config, tokenizer=options.tokenizer)
    if found.kind == "adapter":
        if found.base is None:
            raise CheckpointError(
                f"the base of the adapter {found.given} is neither here nor a hub id: give both, attnlens report BASE "
                f"{found.given}"
            )
        return [found.base.path or found.base.given, checkpoints[0]]
    return [_recorded_base(checkpoints[0]), checkpoints[0]]


@dataclass(frozen=True)
class Lineup:
    """All checkpoints in the order in which they are measured, each with its name.

    Base, then `tuned` tuned ones (twins last: the first one gives the answer), then the named nulls, then the seeds.
    """

    sources: list[str | Path]
    names: tuple[str, ...]
    tuned: int


def _lineup(given: Sequence[str | Path], beside: Sequence[Path], options: ReportOptions) -> Lineup:
    """Every checkpoint in its place; a twin is called what it is, unless it was given a name."""
    sources = [*given, *beside, *options.null, *options.seeds]
    names = names_of([locate(source, config=options.config, tokenizer=options.tokenizer) for source in sources])
    names[: len(options.names or ())] = options.names or ()
    for index, source in enumerate(sources):
        record = recorded(source)
        if record is not None and is_null(record) and index >= len(options.names or ()):
            names[index] = twin_name(names[index], record)
    tuned = len(given) + len(beside) - 1
    ordered, first = twins_last(sources[: tuned + 1], names[: tuned + 1])
    return Lineup([*ordered, *sources[tuned + 1 :]], (*first, *names[tuned + 1 :]), tuned)


def _recorded_base(tuned: str | Path) -> str:
    """The base that a training record names, still the one that was trained."""
    record = read_record(tuned)
    base = {} if record is None else record["base"]
    if not isinstance(base.get("path"), str):
        raise CheckpointError(
            f"{tuned} has no training record that names its base: give both, attnlens report BASE TUNED"
        )
    path = Path(base["path"]).expanduser()
    if path.is_dir() and weights_sha256(path) != base.get("sha256"):
        raise CheckpointError(
            f"{base['path']}, from which {tuned} was trained, has changed since (its sha256 is not the "
            "record's): give both, attnlens report BASE TUNED"
        )
    return str(path)


def _texts(tuned: str | Path, options: ReportOptions) -> Texts:
    """The data asked for, else the held-out rows of the training record, else the embedded probe."""
    record = read_record(tuned)
    if options.data is not None:
        columns = options.columns or recorded_columns(record, Path(options.data))
        corpus = read_corpus(options.data, columns=columns, limit=options.limit, seed=options.seed)
        try:
            background = None if record is None else recorded_corpus(record, "train")
        except CorpusError:
            background = None  # the training file has moved or changed: keyness counts on the texts at hand
        return Texts(corpus, background, str(options.data), probe=False)
    if options.columns:
        raise CorpusError("columns were named, but no data that has them: add --data FILE")
    held = None if record is None else recorded_corpus(record, "heldout")
    if record is not None and held is not None:
        source = f"{record['data']['heldout']['path']} (held out from the training of {Path(tuned).name})"
        return Texts(held, recorded_corpus(record, "train"), source, probe=False)
    if options.salience:
        raise CorpusError("salience needs texts of your task: add --data FILE; the embedded sentences mark no words")
    return Texts(read_corpus(embedded("probe")), None, "general sentences that come with attnlens", probe=True)


def _announcement(models: Sequence[Checkpoint], texts: Texts, count: int, max_length: int) -> str:
    names = ", ".join(model.name for model in models)
    tokens = min(max_length, *(longest_input(model.model, model.tokenizer) - model.virtual for model in models))
    total = texts.corpus.total or len(texts.corpus)
    invitation = "; --data FILE measures on your task" if texts.probe else ""
    return f"Measuring {names} on {count} of {total} texts, at most {tokens} tokens each: {texts.source}{invitation}"


def _folder(names: Sequence[str]) -> str:
    """Where a report goes that was told no folder: every model's name, as far as a file system takes them."""
    base, *tuned = (_slug(name) for name in names)
    return f"report-{base}-vs-{'-'.join(tuned)}"[:200]


def _slug(name: str) -> str:
    """A name that can be a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _key(models: Sequence[Checkpoint], texts: Texts, lexicon: Sequence[str], options: ReportOptions) -> str:
    """What makes two runs the same: models, tokenizers, texts, options that change numbers or pages, version.

    models: base, tuned, and last the third model that the salience asks, if there is one.
    """
    background = texts.background
    identity = {
        "attnlens": __version__,
        "models": [[model.name, *(str(model.provenance[name]) for name in TOLD), _adapter(model)] for model in models],
        "configs": [model.config.to_dict() | {"_name_or_path": None} for model in (each.model for each in models)],
        "tokenizers": [_tokenizer(model) for model in models],
        "texts": [
            texts.corpus.checksum,  # which the report tells, whatever rows were drawn
            hashlib.sha256(repr([vars(example) for example in texts.corpus]).encode()).hexdigest(),
        ],
        "background": None if background is None else [background.checksum, len(background)],
        "lexicon": sorted(set(lexicon)),
        "encoder": options.encoder is not None,
        "options": {name: getattr(options, name) for name in KEYED}
        | {"roles": [len(options.null), len(options.seeds)]},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def _adapter(model: Checkpoint) -> dict[str, Any] | None:
    """What an adapter's weights alone do not say: its settings, wherever its base lies, and its base's weights."""
    if model.source is None or model.source.kind != "adapter" or model.source.path is None:
        return None
    settings = adapter_config(model.source.path) | {"base_model_name_or_path": None}
    return settings | {"base": model.provenance["adapter"]["base_sha256"]}


def _tokenizer(model: Checkpoint) -> str:
    """Checksum of a fast tokenizer, whatever it was last told to cut or pad; others are refused later."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
