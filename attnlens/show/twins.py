"""Shuffled twins in a report: found beside their checkpoint, named for what they are, never counted as an answer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from attnlens.analysis.results import Answer, Comparison
from attnlens.analysis.roles import is_null, is_twin_of
from attnlens.analysis.wording import signed
from attnlens.checkpoints.identity import read_record
from attnlens.show.training_records import QUALITIES, null_word, number, part, training_records
from attnlens.training.twin import twin_path

NULL = "A null, not an answer: "


def found_twins(sources: Sequence[str | Path]) -> list[Path]:
    """The twins that lie beside tuned checkpoints and are not among `sources` yet, base first."""
    given = {Path(source).expanduser().resolve() for source in sources}
    found = []
    for source in sources[1:]:
        path = Path(source).expanduser()
        beside = twin_path(path)
        known = path.is_dir() and beside.is_dir() and beside.resolve() not in given
        if known and is_twin_of(read_record(beside), read_record(path)):
            found.append(beside)
    return found


def twins_last(sources: Sequence[str | Path], names: Sequence[str]) -> tuple[list[str | Path], list[str]]:
    """Base, tuned checkpoints, then those that are twins, each with its name: the first tuned one gives the answer."""
    order = sorted(range(len(sources)), key=lambda index: index > 0 and is_null(recorded(sources[index])))
    return [sources[index] for index in order], [names[index] for index in order]


def recorded(source: str | Path) -> dict[str, Any] | None:
    """The training record of a checkpoint that is a folder here."""
    return read_record(source) if Path(source).expanduser().is_dir() else None


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
    """The models that are shuffled twins, by their records or because they were named as nulls."""
    records, named = training_records(comparison), comparison.provenance.get("nulls", {}).values()
    return [model for model in comparison.models[1:] if model in named or is_null(records.get(model))]


def real_models(comparison: Comparison) -> list[str]:
    """The tuned models but for the twins; all of them where there are only twins."""
    null = twins(comparison)
    return [model for model in comparison.models[1:] if model not in null] or comparison.models[1:]


def kinds(comparison: Comparison, models: pd.Series) -> pd.Series:
    """Of each model "tuned", or "null" of a twin beside a real run."""
    return models.isin(real_models(comparison)).map({True: "tuned", False: "null"})


def nulls_named(comparison: Comparison) -> Comparison:
    """The comparison whose twins' answers say that they are nulls."""
    null = twins(comparison)
    if not null:
        return comparison
    records = training_records(comparison)
    notes = [null_note(name, records[name], _real_run(records, records[name])) for name in null if name in records]
    provenance = comparison.provenance | {"warnings": [*notes, *comparison.provenance["warnings"]]}
    named = {name: {which: _as_null(answer) for which, answer in comparison.answers[name].items()} for name in null}
    return replace(comparison, answers=comparison.answers | named, provenance=provenance)


def _real_run(records: dict[str, dict[str, Any]], null: dict[str, Any]) -> dict[str, Any] | None:
    """The record, among those of the models, of the run that a twin is the twin of."""
    return next((record for record in records.values() if is_twin_of(null, record)), None)


def _as_null(answer: Answer) -> Answer:
    """A twin's answer: the sentence says what it is; the ladder is for the real model to climb."""
    sentence = f"{NULL}{answer.sentence[0].lower()}{answer.sentence[1:]}"
    return replace(answer, sentence=sentence, rungs=(), remarks=(), abstract="")


def told(answer: Answer) -> str:
    """A twin's verdict with its largest change; nothing where there is no focus answer."""
    values = {name: number(answer.headline.get(name)) for name in ("layer", "estimate", "low", "high")}
    if values["estimate"] != values["estimate"]:  # NaN
        return ""
    span = "" if values["low"] != values["low"] else f" (95 % {signed(values['low'])} … {signed(values['high'])})"
    return f"{answer.verdict}; in layer {values['layer']:.0f} {signed(values['estimate'])}{span}."


def verdict_of(model: str, verdict: str, null: list[str]) -> str:
    """A verdict for a table; that of a null says so."""
    return f"null: {verdict}" if model in null else verdict
