"""Base against tuned on one corpus: measure, test, answer."""

import copy
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr

from attnlens.analysis import evidence, hidden
from attnlens.analysis.inference import infer
from attnlens.analysis.measure import MeasureOptions, Progress, Subject, measure
from attnlens.analysis.passages import choose_passages
from attnlens.analysis.prepare import (
    SELECTORS,
    Prepared,
    Reading,
    choose_salience,
    prepare,
    row_selector,
    salience_warnings,
    unknown_share,
)
from attnlens.analysis.results import Answer, Comparison
from attnlens.analysis.variables import dataset
from attnlens.analysis.weights import head_changes, weight_changes
from attnlens.checkpoints.load import Checkpoint, load, load_all, longest_input
from attnlens.core.errors import AttnlensError, CorpusError, IncompatibleCheckpoints
from attnlens.salience import DEFINITIONS, Aids
from attnlens.salience.encoder import weights_of
from attnlens.text.align import Encoded, words
from attnlens.text.chat import rendered
from attnlens.text.corpus import Corpus

SHAPE = ("num_hidden_layers", "num_attention_heads", "hidden_size", "num_key_value_heads")
MOST_UNKNOWN = 0.10
Given = Checkpoint | str | Path
VERSIONS = ("attnlens", "torch", "transformers", "numpy", "scipy", "xarray")


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made.

    limit, max_length: texts (spread over documents) and tokens a text, fewer where a model reads fewer. rows: `cls`,
    `last`, `content` or `completion`; default by the data and the tuned model's head. sesoi: smallest change of
    interest, as a share of the attention on content in one layer. background: the training split, on which keyness
    counts. lexicon: terms, for the salience of that name. encoder: a third model, or its folder, for leave_one_out and
    the attributions. passages: texts kept for the eye; 0 keeps none. memory: GiB that one batch's queries and keys of
    the base may take while the tuned models are held against them; larger batches are halved.
    parts: folder for part files, so that a killed run resumes. probe: the corpus is the embedded one.
    """

    limit: int | None = 200
    max_length: int = 512
    batch_size: int = 16
    rows: str | None = None
    seed: int = 0
    sesoi: float = 0.02
    background: Corpus | None = None
    lexicon: tuple[str, ...] = ()
    encoder: Given | None = None
    passages: int = 8
    memory: float = 4.0
    parts: Path | None = None
    probe: bool = False
    progress: Progress | None = field(default=None, compare=False)


def compare(
    base: Given,
    tuned: Given | Sequence[Given],
    *,
    corpus: Corpus,
    salience: Sequence[str] | None = None,
    options: CompareOptions | None = None,
) -> Comparison:
    """What tuning did to attention and layers of `base`, on `corpus`.

    base, tuned: checkpoints, or their folders or files; tuned: one or several of the same backbone. salience:
    definitions of attnlens.salience, the headline first; None chooses (spans, else keyness, else TextRank); () asks no
    focus question. Raises IncompatibleCheckpoints or CorpusError where the question makes no sense.
    """
    options = CompareOptions() if options is None else options
    given = _loaded([base, *([tuned] if isinstance(tuned, Given) else tuned)])
    base = given[0]
    stored = [model.model.dtype for model in given]
    models = _widened(given)
    names = _check(models)
    options = replace(
        options, max_length=min(options.max_length, *(longest_input(m.model, m.tokenizer) - m.virtual for m in models))
    )
    corpus = rendered(corpus, base.tokenizer)
    texts = corpus if options.limit is None else corpus.sample(options.limit, options.seed)
    aids = _aids(given, salience, options)
    if salience is None:
        salience = () if options.probe else choose_salience(texts, aids)
    salience = tuple(dict.fromkeys(salience))
    selectors = [options.rows or row_selector(model, texts) for model in models[1:]]
    prepared = prepare(texts, models, Reading(selectors[0], salience, aids, options.max_length, options.seed))
    unknown = unknown_share(prepared, base)
    if unknown > MOST_UNKNOWN:
        raise CorpusError(
            f"{unknown:.0%} of the tokens of {corpus.name} are unknown to the tokenizer: the texts do not fit the model"
        )
    floor = _rounded(stored, models)
    subjects = [Subject(model, i in (0, len(models))) for i, model in enumerate([*models, *floor])]
    measuring = MeasureOptions(options.batch_size, options.memory, options.parts, options.progress)
    arrays, sites, reasons = measure(subjects, prepared, measuring)
    data, rounding = _split_floor(dataset([*names, *(model.name for model in floor)], prepared, arrays, sites), floor)
    virtual = _virtual_tokens(data, given)
    weights, heads = _weights(given, names)
    tests = infer(data, sesoi=options.sesoi, seed=options.seed)
    beside = {name: model.adapter.adds for name, model in zip(names, given, strict=True) if model.adapter is not None}
    beside = {name: what for name, what in beside.items() if what is not None}
    answers = _answers(data, tests, weights[~weights["model"].isin(beside)], options, len(texts))
    passages = choose_passages(models, prepared, tests, options.passages, options.seed)
    provenance = _provenance(given, names, texts, prepared, options) | {
        "aids": _told(aids),
        "rows": selectors[0],
        "rounding": rounding,
        "virtual_tokens": virtual,
        "warnings": [
            *_readers(names, selectors),
            *_beside(beside),
            *_in_front(virtual),
            *_gaps(names, reasons),
            *_warnings(base, texts, prepared, options),
        ],
    }
    return Comparison(data, weights, heads, tests, answers, passages, provenance)


def _loaded(given: Sequence[Given]) -> list[Checkpoint]:
    """Checkpoints as they are; paths are loaded, together where all are paths, so that adapters share their base."""
    if len(given) < 2:
        raise IncompatibleCheckpoints("a comparison needs a base and at least one tuned checkpoint")
    if not any(isinstance(each, Checkpoint) for each in given):
        return load_all(given)  # pyright: ignore[reportArgumentType]
    return [each if isinstance(each, Checkpoint) else load(each) for each in given]


def _aids(given: Sequence[Checkpoint], salience: Sequence[str] | None, options: CompareOptions) -> Aids:
    """What the definitions of salience may look at. An aid that none of them reads is a fault: it would do nothing."""
    asked = {aid for name in salience or () if name in DEFINITIONS for aid in DEFINITIONS[name].asks}
    for aid in ("lexicon", "encoder"):
        if getattr(options, aid) and aid not in asked:
            readers = " or ".join(name for name, definition in DEFINITIONS.items() if aid in definition.asks)
            raise AttnlensError(f"--{aid} was given, but no salience that reads it: add --salience {readers}")
    background = None if options.background is None else rendered(options.background, given[0].tokenizer)
    encoder = options.encoder
    if encoder is None:
        return Aids(background, options.lexicon)
    tested = tuple(dict.fromkeys(weights for model in given for weights in weights_of(model)))
    encoder = encoder if isinstance(encoder, Checkpoint) else load(encoder)
    return Aids(background, options.lexicon, encoder, tested)


def _told(aids: Aids) -> dict[str, Any]:
    """Which terms and which third model the salience rests on."""
    return {"lexicon": list(aids.lexicon), "encoder": None if aids.encoder is None else _history(aids.encoder)}


def _check(models: Sequence[Checkpoint]) -> list[str]:
    """Distinct names of the models, which must share one backbone."""
    base = models[0]
    for other in models[1:]:
        for key in ("model_type", *SHAPE):
            left, right = (getattr(model.model.config, key, None) for model in (base, other))
            if left != right:
                raise IncompatibleCheckpoints(
                    "base and tuned must share the backbone: "
                    f"{key} is {left} in {base.name} and {right} in {other.name}"
                )
    names: list[str] = []
    for model in models:
        name, number = model.name, 2
        while name in names:
            name, number = f"{model.name} ({number})", number + 1
        names.append(name)
    return names


def _widened(models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """All models in one dtype that holds every stored weight: two models must not differ by their arithmetic."""
    dtypes = {model.model.dtype for model in models}
    if len(dtypes) == 1:
        return list(models)
    common = max(*dtypes, torch.float32, key=_bits)
    # Copied together: an adapter and its base stay one model.
    copies = copy.deepcopy([model for model in models if model.model.dtype != common])
    for model in copies:
        model.model.to(dtype=common)  # pyright: ignore[reportCallIssue]
    widened = iter(copies)
    return [model if model.model.dtype == common else next(widened) for model in models]


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def _rounded(stored: Sequence[torch.dtype], models: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The first model stored widest, before and after a cast to the narrowest stored dtype: what rounding does."""
    narrowest, widest = min(stored, key=_bits), max(stored, key=_bits)
    if _bits(narrowest) == _bits(widest):
        return []
    source = models[list(stored).index(widest)]
    rounded = copy.deepcopy(source)
    for parameter in rounded.model.parameters():
        parameter.data = parameter.data.to(narrowest).to(parameter.dtype)
    name = f"rounding to {narrowest}".replace("torch.", "")
    return [replace(source, name=f"{name}: before"), replace(rounded, name=name)]


def _split_floor(data: xr.Dataset, floor: Sequence[Checkpoint]) -> tuple[xr.Dataset, dict[str, Any] | None]:
    """The dataset without the rounded pair, and what rounding did, largest over layers."""
    if not floor:
        return data, None
    shift = abs((data.isel(model=-1) - data.isel(model=-2)).mean("head").mean("example"))
    sizes = {name: float(shift[name].max()) for name in ("focus", "entropy", "entropy_content") if name in shift}
    sizes["jsd"] = float(data["jsd"].isel(model=-1).mean("head").mean("example").max())
    if hidden.CHANGE in data:
        sizes[hidden.CHANGE] = float(data[hidden.CHANGE].isel(model=-1).mean("example").max())
    return data.isel(model=slice(0, -2)), {"model": floor[-1].name, **sizes}


def _weights(models: Sequence[Checkpoint], names: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Change of every matrix and of every head's products, of each tuned model, from the weights as stored."""
    weights, heads = [], []
    for model, name in zip(models[1:], names[1:], strict=True):
        weights.append(weight_changes(models[0], model, spectra=False).assign(model=name))
        heads.append(head_changes(models[0], model).assign(model=name))
    return pd.concat(weights, ignore_index=True), pd.concat(heads, ignore_index=True)


def _answers(
    data: xr.Dataset, tests: pd.DataFrame, weights: pd.DataFrame, options: CompareOptions, texts: int
) -> dict[str, dict[str, Answer]]:
    answers = {}
    for model in (str(name) for name in data["model"].values[1:]):
        if "focus" not in data:
            answers[model] = {"": evidence.not_asked(texts, options.probe)}
            continue
        changed = weights[(weights["model"] == model) & (weights["kind"] == "backbone")]
        same = len(changed) > 0 and bool((changed["entries"] == changed["identical"]).all())
        answers[model] = {}
        for salience in (str(name) for name in data["salience"].values):
            rows = tests[(tests["model"] == model) & (tests["salience"] == salience) & (tests["family"] == "profile")]
            answers[model][salience] = evidence.decide(
                rows, data, model=model, salience=salience, sesoi=options.sesoi, same_weights=same
            )
    return answers


def _readers(names: Sequence[str], selectors: Sequence[str]) -> list[str]:
    """A line for tuned models whose heads read other rows than those that are measured."""
    others = [name for name, selector in zip(names[1:], selectors, strict=True) if selector != selectors[0]]
    if not others:
        return []
    return [f"Rows measured: {SELECTORS[selectors[0]]}, as in {names[1]}; {', '.join(others)} would read others."]


def _beside(beside: dict[str, str]) -> list[str]:
    """A line for each tuned model whose changes the tables of weights cannot show."""
    return [
        f"{name} leaves the weights of its base as they are and adds {what} beside them: the tables of weights show no "
        "change, and say nothing about what was added."
        for name, what in beside.items()
    ]


def _virtual_tokens(data: xr.Dataset, models: Sequence[Checkpoint]) -> dict[str, dict[str, Any]]:
    """Of each model with virtual tokens: how many, and the share of attention on them, mean over texts and heads."""
    found = {}
    for name, model in zip(data["model"].values.tolist(), models, strict=True):
        if model.virtual:
            layers = data["virtual_mass"].sel(model=name).mean("head").mean("example")
            found[str(name)] = {"count": model.virtual, "mass": float(layers.mean()), "layers": layers.values.tolist()}
    return found


def _in_front(virtual: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each model with virtual tokens: what they take, and what all other numbers are then about."""
    return [
        f"{name} reads {facts['count']} virtual tokens before each text, which take {facts['mass']:.0%} of the "
        f"attention of the measured rows, at most {max(facts['layers']):.0%} in a layer. All other numbers are "
        "of what is left among the text's own tokens, scaled to 1: base and tuned are compared on the same keys."
        for name, facts in virtual.items()
    ]


def _gaps(names: Sequence[str], reasons: Sequence[dict[str, str]]) -> list[str]:
    """Statistics that some layers of a model have not, and why; models with one reason in one line."""
    found: dict[tuple[str, str], list[str]] = {}
    for model, given in zip(names, reasons, strict=False):  # behind the named models stands the rounded pair
        for item in given.items():
            found.setdefault(item, []).append(model)
    return [
        f"{statistic} has no data in some layers of {', '.join(models)}: {reason}."
        for (statistic, reason), models in found.items()
    ]


def _warnings(base: Checkpoint, texts: Corpus, prepared: Prepared, options: CompareOptions) -> list[str]:
    """What page one must say about the data."""
    found = []
    if base.model.config.is_encoder_decoder:
        found.append("Of this encoder–decoder the encoder's attention alone was measured.")
    if not texts.has_documents:
        found.append("The data has no `document` column: texts are treated as independent of each other.")
    empty = sum(not rows.any() for rows in prepared.rows)
    if empty:
        found.append(f"{empty} of {len(texts)} texts have no row to measure within {options.max_length} tokens.")
    documents = len({example.document for example in texts})
    if documents < 10:
        found.append(f"Only {documents} documents: intervals rest on few units and are wide or unreliable.")
    cut = sum(_is_cut(example.text, encoded) for example, encoded in zip(texts, prepared.encodings, strict=True))
    if cut:
        found.append(f"{cut} of {len(texts)} texts were cut at {options.max_length} tokens.")
    found += salience_warnings(prepared)
    return found


def _is_cut(text: str, encoded: Encoded) -> bool:
    """Whether words at the end of the text were left out."""
    last = len(words(text)) - 1
    return last >= 0 and bool((encoded.word_of != last).all())


def _provenance(
    models: Sequence[Checkpoint], names: list[str], texts: Corpus, prepared: Prepared, options: CompareOptions
) -> dict[str, Any]:
    """Where the numbers come from; no home directory, host or user in it."""
    return {
        "models": [{"name": name, **_history(model)} for name, model in zip(names, models, strict=True)],
        "data": {
            "name": texts.name,
            "sha256": texts.checksum,
            "texts": len(texts),
            "documents": len({example.document for example in texts}),
            "background": None if options.background is None else options.background.checksum,
        },
        "salience": prepared.facts,
        "options": {
            name: getattr(options, name) for name in ("limit", "max_length", "batch_size", "seed", "sesoi", "probe")
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
        "device": str(models[0].model.device.type),
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


def slug(name: str) -> str:
    """A name that can be a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
