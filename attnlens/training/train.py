"""Fine-tune a sequence classifier or a language model, and leave a checkpoint with its training record."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnlens.checkpoints.card import card
from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.load import quiet
from attnlens.checkpoints.remote_code import trusted, trusting
from attnlens.checkpoints.seal import seal
from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus, read_corpus
from attnlens.training.cost import bytes_in
from attnlens.training.data_report import data_report
from attnlens.training.job import Job, prepare
from attnlens.training.judging import SCORES
from attnlens.training.loop import Outcome, train_model
from attnlens.training.methods import Method, method_named
from attnlens.training.observers import observers
from attnlens.training.options import TrainOptions
from attnlens.training.output import check_output, finished, published, seeded
from attnlens.training.overlap import selection_overlap
from attnlens.training.processes import agreed, check_sharding, first
from attnlens.training.record import (
    describe_base,
    describe_data,
    describe_order,
    describe_run,
    describe_training,
    write_record,
)
from attnlens.training.split import Split, split
from attnlens.training.switching import LayerSwitching
from attnlens.training.twin import shuffled, twin_path

__all__ = ["TrainOptions", "TrainingResult", "finetune"]

DEFAULTS = TrainOptions()
PARTS = {"mean": "mean", "peak": "peak", "cumulative": "changed in the end"}  # of the accounting, for the card


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A finished run: where the checkpoint lies, how good it is on held-out rows, and its whole record.

    metrics, of the saved step on the held-out rows: `loss` in nats; of a classifier `accuracy` and `macro_f1` in 0..1;
    of a language model `perplexity` = exp(loss), the loss being the mean over all predicted tokens, and `base_loss` and
    `base_perplexity` before training. Also `epoch` and `steps` that were trained, and `best_step`, the one that was
    saved. They are what chose that step, so they flatter it.

    note: what `resume` found, where it found something. twin: the same training on shuffled rows, where that was asked
    for; its metrics are those of the step that the real run kept.
    """

    path: Path
    method: str
    metrics: dict[str, float]
    record: dict[str, Any]
    note: str = ""
    twin: "TrainingResult | None" = None

    def __repr__(self) -> str:
        """A card of four lines, not the record; more where texts were cut, data call for a warning, or with a twin."""
        lines = [f"{self.record['base']['name']} fine-tuned by {self.method!r} → {home_free(self.path)}"]
        lines += [f"{name}: {value}" for name, value in self._facts().items()]
        lines += [_lost(self.record)] if _lost(self.record) else []
        lines += [f"warning: {warning}" for warning in self.record["data_report"]["warnings"]]
        lines += [self.note] if self.note else []
        if self.twin:
            lines += [f"shuffled twin → {home_free(self.twin.path)}", f"  held out: {self.twin.measured}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same card as a table for a notebook; under it that of the twin."""
        title = f"{self.record['base']['name']} fine-tuned by {self.method}"
        rest = {
            "texts": _lost(self.record),
            "warnings": "; ".join(self.record["data_report"]["warnings"]),
            "note": self.note,
            "checkpoint": home_free(self.path),
        }
        return card(title, self._facts() | rest) + (self.twin._repr_html_() if self.twin else "")

    def _facts(self) -> dict[str, str]:
        """How good it is, what was trained, which step was kept and why."""
        record, parameters = self.record, self.record["parameters"]
        trained = f"{parameters['trainable']:,} of {parameters['total']:,} parameters"
        trained += f" ({100 * parameters['trainable'] / parameters['total']:.1f} %)"
        if record["switching"] is not None:
            shares = {word: 100 * record["accounting"][name]["of_total"] for name, word in PARTS.items()}
            trained += " at a time; " + ", ".join(f"{word} {share:.1f} %" for word, share in shares.items())
            chosen = (record["selection_overlap"] or {}).get("active", ())
            trained += f"; blocks chosen: {', '.join(str(block + 1) for block in chosen)}" if chosen else ""
        kept = f"step {self.metrics['best_step']}{_stop(record)}"
        kept += f"; {record['seconds']:.0f} s on {record['device']}, seed {record['seed']}"
        return {"held out": self.measured, "trained": trained, "kept": kept}

    @property
    def measured(self) -> str:
        """The scores on the held-out rows, in words."""
        record, metrics = self.record, self.metrics
        texts = f"{record['data']['heldout']['examples']} texts"
        if "perplexity" not in metrics:
            names = [name for name in SCORES if name in metrics]
            scores = ", ".join(f"{name.replace('_f1', '-F1').replace('_', ' ')} {metrics[name]:.3f}" for name in names)
            return f"{scores} ({texts}, {len(record['labels'])} labels)"
        scores = f"perplexity {metrics['base_perplexity']:.2f} before, {metrics['perplexity']:.2f} after"
        return f"{scores}, loss {metrics['loss']:.3f} nats ({record['heldout_tokens']:,} tokens of {texts})"


def finetune(
    base: str | Path,
    train: Corpus | str | Path,
    *,
    method: str = "full",
    output: str | Path,
    seed: int = 0,
    options: TrainOptions = DEFAULTS,
) -> TrainingResult:
    """Fine-tune `base` on `train`; the step that is best on the held-out rows is written to `output`.

    Rows with labels train a sequence classifier, the best step being that of the best macro-F1. Rows without labels
    train a causal language model on every token, rows with a completion or messages on what is answered, also where
    they have labels; the best step is that of the least loss.

    `output` becomes a plain Hugging Face directory with its tokenizer and `attnlens.json`. It appears at once and
    complete, or not at all: until then the run lives in a hidden folder beside it, from which `options.resume` goes on
    after an interruption, a kill included, as if there had been none. A loss that is no number ends training: the best
    step until then is written, and the error names it. On a CPU the same arguments and number of threads give the same
    weights bit for bit. Global random states are left as they were.

    Under torchrun or accelerate launch the processes share each step's rows, `batch_size` in each; the first writes.
    """
    check_sharding()
    chosen = method_named(method, options)
    check_seed(seed)
    sources = [source for source in (base, train, options.validation) if isinstance(source, str | Path)]
    destination = check_output(output, sources, force=options.force or options.resume)
    data, paths = read_rows(train, options, seed)
    order = _Order(base, chosen, data, paths, seed, options, destination)
    if not options.null_twin:
        return _carried_out(order)
    beside = check_output(twin_path(destination), sources, force=options.force or options.resume)
    result = _carried_out(order)
    steps = int(result.metrics["best_step"])
    real = (result.record["selection_overlap"] or {}).get("active")
    # As many steps, for the schedule to be the same: shuffled words may fill more windows or fewer.
    options = replace(options, max_steps=result.record["options"]["max_steps"])
    null = replace(order, data=shuffled(data, seed), destination=beside, stop_at=steps, real=real, options=options)
    try:
        twin = _carried_out(null)
    except KeyboardInterrupt as stop:
        told = f"{home_free(destination)} is complete, its twin not"
        raise KeyboardInterrupt(str(stop) or f"{told}; the same command with --resume trains it") from stop
    except TrainingError as error:
        raise TrainingError(f"{home_free(destination)} is complete, its twin not: {error}") from error
    return replace(result, twin=twin)


def check_seed(seed: int) -> None:
    """Refuse what torch and numpy would not both take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise TrainingError(f"seed must be a whole number from 0 to 2^32 - 1; got {seed!r}.")


def read_rows(
    train: Corpus | str | Path, options: TrainOptions, seed: int
) -> tuple[Split, tuple[Path | None, Path | None]]:
    """Training and held-out rows, and the files they come from."""
    corpus, path = _corpus(train, options)
    validation, validation_path = (
        _corpus(options.validation, options) if options.validation is not None else (None, path)
    )
    if validation is not None and None not in (path, validation_path):
        _check_apart(corpus, validation)
    return split(corpus, validation, seed, options.task), (path, validation_path)


@dataclass(frozen=True)
class _Order:
    """What was asked for, checked. Of a twin, stop_at: the step that the run beside it kept; real: its last blocks."""

    base: str | Path
    method: Method
    data: Split
    paths: tuple[Path | None, Path | None]
    seed: int
    options: TrainOptions
    destination: Path
    stop_at: int | None = None
    real: list[int] | None = None


def _carried_out(order: _Order) -> TrainingResult:
    """One run from loading to the published checkpoint."""
    with quiet(), seeded(order.seed), trusting(order.options.trust_remote_code or trusted()):
        job = prepare(order.base, order.data, order.method, order.options, order.seed)
        job = replace(job, stop_at=order.stop_at)
        identity = describe_base(job.base)
        asked = describe_order(job, identity)
        if (record := finished(order.destination, asked, order.options)) is not None:
            note = f"{home_free(order.destination)} is complete: nothing was left to do"
            return TrainingResult(order.destination, order.method.name, record["metrics"], record, note)
        with published(order.destination, asked, order.options) as folder:
            outcome, record = _trained(order, job, folder, {"base": identity, "order": asked})
        agreed(None)  # none returns before the first has published
    if outcome.fault is not None:
        raise TrainingError(
            f"{outcome.fault}; step {outcome.metrics['best_step']}, the best until then, is kept in "
            f"{home_free(order.destination)}: lower --learning-rate, or check the base's weights."
        )
    afresh = "no interrupted run was there to resume: trained from the start" if order.options.resume else ""
    note = f"resumed from step {outcome.resumed}" if outcome.resumed is not None else afresh
    return TrainingResult(order.destination, order.method.name, outcome.metrics, record, note)


def _trained(order: _Order, job: Job, folder: Path, identity: dict[str, Any]) -> tuple[Outcome, dict[str, Any]]:
    """Train, and write the checkpoint with its record into the folder."""
    report = data_report(job.data, job.base.tokenizer, job.options.length)
    switching = [LayerSwitching(job.selection.plan, job.base.model)] if job.selection.plan is not None else []
    watching = observers(job, switching[0] if switching else None)
    outcome = train_model(job, folder, [*switching, *watching])
    controller = switching[0].controller if switching else None
    record = {
        **describe_run(job, outcome),
        **describe_training(job, controller, outcome),
        **{observer.key: observer.facts() for observer in watching},
        "selection_overlap": _overlap(switching[0], outcome, order.real) if switching else None,
        "null_twin": order.stop_at is not None,
        **identity,
        "data": describe_data(order.data, *order.paths),
        "labels": list(job.data.labels),
        "data_report": report,
    }
    if first():
        job.save(folder / "checkpoint")
        record["cost"]["checkpoint_bytes"] = bytes_in(folder / "checkpoint")
        job.base.tokenizer.save_pretrained(folder / "checkpoint")
        write_record(folder / "checkpoint", record)
        seal(folder / "checkpoint")
    return outcome, record


def _overlap(switching: LayerSwitching, outcome: Outcome, real: list[int] | None) -> dict[str, Any] | None:
    return selection_overlap(switching.controller, switching.rms, int(outcome.metrics["best_step"]), real)


def _stop(record: dict[str, Any]) -> str:
    """Of how many steps, and why there were no more of them."""
    options, steps = record["options"], record["metrics"]["steps"]
    if record["fault"] is not None:
        return f"; {record['fault']}"
    if steps >= options["max_steps"]:
        return f" of {steps}"
    patience = f"no better for {options['patience']} evaluations"
    return f"; stopped after step {steps} of {options['max_steps']}: {patience}"


def _lost(record: dict[str, Any]) -> str:
    """A line on texts of which the end, or all that was to be predicted, lies beyond the length."""
    data, length, dropped = record["data"], record["options"]["max_length"], record.get("dropped", 0)
    texts, kind = len(data["train"]["rows_used"]), "training texts"
    if "perplexity" in record["metrics"]:
        texts, kind = texts + data["heldout"]["examples"], "texts"
    lines = [f"{record['truncated']} of {texts} {kind} were cut at {length} tokens"] if record["truncated"] else []
    lines += [f"{dropped} left out, with nothing to predict"] if dropped else []
    return "; ".join(lines)


def _check_apart(corpus: Corpus, validation: Corpus) -> None:
    """Rows that were trained on are not held out, whatever their file is called."""
    if corpus.checksum == validation.checksum:
        raise TrainingError(
            f"{validation.name} is the training data itself, so nothing would be held out: leave --validation out to "
            "hold out a fifth of the documents, or give other data."
        )


def _corpus(data: Corpus | str | Path, options: TrainOptions) -> tuple[Corpus, Path | None]:
    """The corpus, and the file it was read from."""
    if isinstance(data, Corpus):
        return data, None
    path = Path(data).expanduser()
    return read_corpus(path, columns=options.columns), path.resolve()
