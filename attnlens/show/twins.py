"""Shuffled twins in a report: found beside their checkpoint, named for what they are, never counted as an answer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnlens.analysis.results import Answer, Comparison, Rung
from attnlens.analysis.wording import signed
from attnlens.checkpoints.identity import read_record
from attnlens.show.training_records import QUALITIES, is_null, null_word, number, part, training_records
from attnlens.training.twin import twin_path

SHUFFLED = 3  # rung of the evidence ladder that asks for a twin
NULL = "A null, not an answer: "


def found_twins(sources: Sequence[str | Path]) -> list[Path]:
    """The twins that lie beside tuned checkpoints and are not among `sources` yet, base first."""
    given = {Path(source).expanduser().resolve() for source in sources}
    found = []
    for source in sources[1:]:
        path = Path(source).expanduser()
        beside = twin_path(path)
        if path.is_dir() and beside.is_dir() and beside.resolve() not in given and _belongs(path, beside):
            found.append(beside)
    return found


def twins_last(sources: Sequence[str | Path], names: Sequence[str]) -> tuple[list[str | Path], list[str]]:
    """Base, tuned checkpoints, then those that are twins, each with its name: the first tuned one gives the answer."""
    order = sorted(range(len(sources)), key=lambda index: index > 0 and is_null(recorded(sources[index])))
    return [sources[index] for index in order], [names[index] for index in order]


def recorded(source: str | Path) -> dict[str, Any] | None:
    """The training record of a checkpoint that is a folder here."""
    return read_record(source) if Path(source).expanduser().is_dir() else None


def _belongs(path: Path, beside: Path) -> bool:
    """Whether a folder holds the twin of this very run: same base, data, method and seed, labels apart."""
    real, null = read_record(path), read_record(beside)
    if real is None or null is None or is_null(real) or not is_null(null):
        return False

    def identity(record: dict[str, Any]) -> list[object]:
        data = [part(record, "data", name).get("sha256") for name in ("train", "heldout")]
        return [record.get("method"), record.get("seed"), part(record, "base").get("sha256"), *data]

    return identity(real) == identity(null)


def twin_name(name: str, record: dict[str, Any]) -> str:
    """What a report calls a twin: "tuned.null.ckpt" becomes "tuned.ckpt on shuffled labels"."""
    return f"{name.replace('.null.', '.').removesuffix('.null')} on {null_word(record)}"


def null_note(model: str, record: dict[str, Any], real: dict[str, Any] | None) -> str:
    """What a twin among the models is, with the held-out result that tells whether it learned anything."""
    quality = ""
    for name in ("accuracy", *QUALITIES):
        null, known = (number(part(each, "metrics").get(name)) for each in (record, real))
        if null == null:
            against = f", against {known:.3g} in the real run" if known == known else ""
            quality = f" Held-out {QUALITIES[name]}: {null:.3g}{against}."
            break
    word = null_word(record)
    teaching = "which teach nothing about the texts" if word == "shuffled labels" else "whose order teaches nothing"
    return (
        f"{model} is a null: the same training on {word}, {teaching}. A change that it shows as well comes from "
        f"training as such, not from the task.{quality}"
    )


def twins(comparison: Comparison) -> list[str]:
    """The models that are shuffled twins, by their records."""
    return [model for model, record in training_records(comparison).items() if is_null(record)]


def real_models(comparison: Comparison) -> list[str]:
    """The tuned models but for the twins; all of them where there are only twins."""
    null = twins(comparison)
    return [model for model in comparison.models[1:] if model not in null] or comparison.models[1:]


def nulls_named(comparison: Comparison) -> Comparison:
    """The comparison whose twins' answers say that they are nulls, and whose other answers point at them.

    The third rung stays "not tested": one twin beside a model is something to look at, no test.
    """
    null = twins(comparison)
    if not null:
        return comparison
    records = training_records(comparison)
    notes = [null_note(model, records[model], _real_run(records, records[model])) for model in null]
    provenance = comparison.provenance | {"warnings": [*notes, *comparison.provenance["warnings"]]}
    answers = {}
    for model, found in comparison.answers.items():
        if model in null:
            answers[model] = {salience: _as_null(answer) for salience, answer in found.items()}
        else:
            answers[model] = {
                salience: _beside(answer, [(name, comparison.answers[name][salience]) for name in null])
                for salience, answer in found.items()
            }
    return replace(comparison, answers=answers, provenance=provenance)


def _real_run(records: dict[str, dict[str, Any]], null: dict[str, Any]) -> dict[str, Any] | None:
    """The record, among those of the models, of the run that a twin is the twin of."""
    real = (record for record in records.values() if not is_null(record))
    return next((r for r in real if (r.get("method"), r.get("seed")) == (null.get("method"), null.get("seed"))), None)


def _as_null(answer: Answer) -> Answer:
    """A twin's answer: the sentence says what it is; the ladder is for the real model to climb."""
    sentence = f"{NULL}{answer.sentence[0].lower()}{answer.sentence[1:]}"
    return replace(answer, sentence=sentence, rungs=())


def _beside(answer: Answer, null: list[tuple[str, Answer]]) -> Answer:
    """A real model's answer, its third rung with what the twins show."""
    shown = [f"{name}: {words}" for name, other in null if (words := told(other))]
    if not shown:
        return answer
    detail = f"Measured beside it, to be looked at, not yet a test. {' '.join(shown)}"
    rungs = tuple(
        Rung(rung.number, rung.question, rung.status, detail)
        if rung.number == SHUFFLED and rung.status == "not tested"
        else rung
        for rung in answer.rungs
    )
    return replace(answer, rungs=rungs)


def told(answer: Answer) -> str:
    """A twin's verdict with its largest change; nothing where there is no focus answer."""
    values = {name: number(answer.headline.get(name)) for name in ("layer", "estimate", "low", "high")}
    if values["estimate"] != values["estimate"]:  # NaN
        return ""
    span = "" if values["low"] != values["low"] else f" (95 % {signed(values['low'])} … {signed(values['high'])})"
    return f"{answer.verdict}; in layer {values['layer']:.0f} {signed(values['estimate'])}{span}."
