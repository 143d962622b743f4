"""Where a comparison's numbers come from, and what page one must say about them."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
import xarray as xr

from attnlens.analysis.prepare import SELECTORS, Prepared, salience_warnings
from attnlens.analysis.roles import Roles, held_out_otherwise
from attnlens.analysis.subjects import Cast
from attnlens.analysis.wording import documents_of
from attnlens.checkpoints.load import Checkpoint
from attnlens.salience import Aids
from attnlens.text.align import Encoded, words
from attnlens.text.corpus import Corpus

VERSIONS = ("attnlens", "torch", "transformers", "numpy", "scipy", "xarray")


def provenance(cast: Cast, texts: Corpus, prepared: Prepared, options: Mapping[str, Any]) -> dict[str, Any]:
    """Where the numbers come from; no home directory, host or user in it."""
    return {
        "models": [{"name": name, **_history(model)} for name, model in zip(cast.names, cast.given, strict=True)],
        "nulls": dict(cast.roles.nulls),
        "seeds": {name: list(more) for name, more in cast.roles.seeds.items()},
        "data": {
            "name": texts.name,
            "sha256": texts.checksum,
            "texts": len(texts),
            "documents": len({example.document for example in texts}),
        },
        "salience": prepared.facts,
        "options": dict(options),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "device": str(cast.given[0].model.device.type),
        "threads": torch.get_num_threads(),
    }


def _history(model: Checkpoint) -> dict[str, Any]:
    """Where a model came from, without the row numbers of its data: there may be millions."""
    facts = model.provenance
    if model.checksum is not None and not model.is_as_loaded:
        facts = facts | {"sha256": None, "edited": "in memory, after loading"}
    training = facts.get("training")
    if training is None:
        return facts
    parts = training.get("data") or {}
    data = {part: {k: v for k, v in about.items() if k not in ("rows", "rows_used")} for part, about in parts.items()}
    return facts | {"training": training | {"data": data}}


def about_aids(aids: Aids) -> dict[str, Any]:
    """Which training split, which terms and which third model the salience rests on."""
    return {
        "background": None if aids.background is None else aids.background.checksum,
        "lexicon": list(aids.lexicon),
        "encoder": None if aids.encoder is None else _history(aids.encoder),
    }


def readers(names: Sequence[str], selectors: Sequence[str]) -> list[str]:
    """A line for tuned models whose heads read other rows than those that are measured."""
    others = [name for name, selector in zip(names[1:], selectors, strict=True) if selector != selectors[0]]
    if not others:
        return []
    return [f"Rows measured: {SELECTORS[selectors[0]]}, as in {names[1]}; {', '.join(others)} would read others."]


def beside_weights(beside: dict[str, str]) -> list[str]:
    """A line for each tuned model whose changes the tables of weights cannot show."""
    return [
        f"{name} leaves the weights of its base as they are and adds {what} beside them: the tables of weights show no "
        "change, and say nothing about what was added."
        for name, what in beside.items()
    ]


def virtual_tokens(data: xr.Dataset, models: Sequence[Checkpoint]) -> dict[str, dict[str, Any]]:
    """Of each model with virtual tokens: how many, and the share of attention on them, mean over texts and heads."""
    found = {}
    for name, model in zip(data["model"].values.tolist(), models, strict=True):
        if model.virtual:
            layers = data["virtual_mass"].sel(model=name).mean("head").mean("example")
            found[str(name)] = {"count": model.virtual, "mass": float(layers.mean()), "layers": layers.values.tolist()}
    return found


def in_front(virtual: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each model with virtual tokens: what they take, and what all other numbers are then about."""
    return [
        f"{name} reads {facts['count']} virtual tokens before each text, which take {facts['mass']:.0%} of the "
        f"attention of the measured rows, at most {max(facts['layers']):.0%} in a layer. All other numbers are "
        "of what is left among the text's own tokens, scaled to 1: base and tuned are compared on the same keys."
        for name, facts in virtual.items()
    ]


def gaps(names: Sequence[str], reasons: Sequence[dict[str, str]]) -> list[str]:
    """Statistics that some layers of a model have not, and why; models and statistics with one reason in one line."""
    models: dict[tuple[str, str], list[str]] = {}
    for model, given in zip(names, reasons, strict=False):  # behind the named models stands the rounded pair
        for item in given.items():
            models.setdefault(item, []).append(model)
    found: dict[tuple[str, str], list[str]] = {}
    for (statistic, reason), some in models.items():
        found.setdefault((", ".join(some), reason), []).append(statistic)
    return [
        f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no data in some layers of {some}: {reason}."
        for (some, reason), missing in found.items()
    ]


def about_texts(base: Checkpoint, texts: Corpus, prepared: Prepared, max_length: int) -> list[str]:
    """What page one must say about the data."""
    found = []
    if base.model.config.is_encoder_decoder:
        found.append("Of this encoder–decoder the encoder's attention alone was measured.")
    if not texts.has_documents:
        found.append("The data has no `document` column: texts are treated as independent of each other.")
    empty = sum(not rows.any() for rows in prepared.rows)
    if empty:
        found.append(f"{empty} of {len(texts)} texts have no row to measure within {max_length} tokens.")
    documents = len({example.document for example in texts})
    if documents < 10:
        found.append(f"Only {documents_of(documents)}: intervals rest on few units and are wide or unreliable.")
    cut = sum(_is_cut(example.text, encoded) for example, encoded in zip(texts, prepared.encodings, strict=True))
    if cut:
        found.append(f"{cut} of {len(texts)} texts were cut at {max_length} tokens.")
    found += salience_warnings(prepared)
    return found


def _is_cut(text: str, encoded: Encoded) -> bool:
    """Whether words at the end of the text were left out."""
    last = len(words(text)) - 1
    return last >= 0 and bool((encoded.word_of != last).all())


def about_seeds(cast: Cast) -> list[str]:
    """A line for each training whose runs held out other rows: what is new to one may be learned by another."""
    records = {name: model.provenance.get("training") for name, model in zip(cast.names, cast.given, strict=True)}
    found = []
    for first, others in cast.roles.seeds.items():
        apart = [name for name in others if held_out_otherwise(records[first], records[name])]
        if apart:
            found.append(
                f"{', '.join(apart)} held out other rows than {first} did, and may have learned some of these texts: "
                "train all seeds with the same --validation FILE, and measure on that."
            )
    return [*found, *_unpaired(cast.roles)]


def _unpaired(roles: Roles) -> list[str]:
    """A line for each training that cannot be held against the first one, for want of the same seeds."""
    first, *others = roles.answers
    seeds = {
        name: ", ".join(sorted(str(roles.numbers.get(run, "unknown")) for run in roles.runs(name)))
        for name in roles.answers
    }
    return [
        f"{name} (seeds {seeds[name]}) and {first} (seeds {seeds[first]}) are not paired by seed: the two trainings "
        "cannot be held against each other. Give both the same seeds."
        for name in others
        if roles.seeds and not roles.pairs(name)
    ]
