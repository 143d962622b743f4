"""Base against tuned on one corpus: measure, test, answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis import evidence
from attnlens.analysis.inference import infer
from attnlens.analysis.knockout import KnockoutOptions, knockout
from attnlens.analysis.ladder import Case
from attnlens.analysis.measure import MeasureOptions, measure, measure_share
from attnlens.analysis.noise import noise_band
from attnlens.analysis.parts import Progress
from attnlens.analysis.passages import choose_passages
from attnlens.analysis.prepare import Prepared, Reading, choose_salience, prepare, row_selector, unknown_share
from attnlens.analysis.provenance import (
    about_aids,
    about_seeds,
    about_texts,
    beside_weights,
    gaps,
    in_front,
    provenance,
    readers,
    virtual_tokens,
)
from attnlens.analysis.results import Answer, Comparison
from attnlens.analysis.subjects import Cast, Given, Subject, assembled, split_floor
from attnlens.analysis.variables import VARIABLES, dataset
from attnlens.analysis.weights import head_changes, weight_changes
from attnlens.checkpoints.hide import check_hidable
from attnlens.checkpoints.load import Checkpoint, load, longest_input
from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.salience import DEFINITIONS, Aids
from attnlens.salience.encoder import weights_of
from attnlens.text.chat import rendered
from attnlens.text.corpus import Corpus

MOST_UNKNOWN = 0.10
Facts = Mapping[str, Mapping[str, Any]]
KNOCKED_OUT = {
    "knockout_effect": "what hiding the marked words costs",
    "knockout_control": "what hiding as many ordinary words costs",
    "causal_focus": "what hiding the marked words costs beyond ordinary ones",
    "reliance": "causal focus beyond that of the base",
}
OPTIONS = ("limit", "max_length", "batch_size", "seed", "sesoi", "probe", "knockout", "noise_band")


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made.

    limit, max_length: texts (spread over documents) and tokens a text, fewer where a model reads fewer. rows: `cls`,
    `last`, `content` or `completion`; default by the data and the tuned model's head. sesoi: smallest change of
    interest, as a share of the attention on content in one layer. background: the training split, on which keyness
    counts. lexicon: terms, for the salience of that name. encoder: a third model, or its folder, for leave_one_out and
    the attributions. passages: texts kept for the eye; 0 keeps none. memory: GiB that one batch's queries, keys and
    hidden states may take while the tuned models are held against those of the base; larger batches are halved.
    parts: folder for part files, so that a killed run resumes and several processes share the work (`share`). probe:
    the corpus is the embedded one.
    nulls: shuffled twins, besides those among the tuned whose training record says so. seeds: more runs of a tuned
    model's training, from other seeds: they bear on its answer and get none of their own; its run and theirs take one
    more pass each, for the JSD between seeds. knockout: also hide the
    headline's words from all attention and see what the outputs lose, in six more passes (analysis/knockout.py);
    further: its progress. noise_band: draws of random weight noise of the size of the tuning's change, one more pass
    each (analysis/noise.py).
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
    nulls: tuple[Given, ...] = ()
    seeds: tuple[Given, ...] = ()
    knockout: bool = False
    noise_band: int = 0
    progress: Progress | None = field(default=None, compare=False)
    further: Progress | None = field(default=None, compare=False)


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
    return _compared(_asked(base, tuned, corpus, salience, options))


def share(
    base: Given,
    tuned: Given | Sequence[Given],
    *,
    corpus: Corpus,
    salience: Sequence[str] | None = None,
    options: CompareOptions | None = None,
) -> None:
    """Measure the share of this process in what the first one compares: the same arguments in all, `parts` too."""
    measure_share(*_passes(_asked(base, tuned, corpus, salience, options)))


@dataclass(frozen=True)
class _Question:
    """What is asked of which models: given and found out before anything is measured.

    selectors: whose rows count, a tuned model each. floor: the base at the dtype floor. options: with the length that
    all models read.
    """

    cast: Cast
    texts: Corpus
    prepared: Prepared
    aids: Aids
    selectors: list[str]
    floor: list[Checkpoint]
    options: CompareOptions


def _asked(
    base: Given,
    tuned: Given | Sequence[Given],
    corpus: Corpus,
    salience: Sequence[str] | None,
    options: CompareOptions | None,
) -> _Question:
    """Prepare the texts for the models, or raise where the question makes no sense."""
    options = CompareOptions() if options is None else options
    tuned = [tuned] if isinstance(tuned, Given) else list(tuned)
    cast = assembled([base, *tuned], options.nulls, options.seeds)
    models = cast.models
    options = replace(
        options, max_length=min(options.max_length, *(longest_input(m.model, m.tokenizer) - m.virtual for m in models))
    )
    texts = corpus if options.limit is None else corpus.sample(options.limit, options.seed)
    texts = rendered(texts, models[0].tokenizer)
    aids = _aids(cast.given, salience, options)
    if salience is None:
        salience = () if options.probe else choose_salience(texts, aids)
    salience = tuple(dict.fromkeys(salience))
    selectors = [options.rows or row_selector(model, texts) for model in models[1:]]
    prepared = prepare(texts, models, Reading(selectors[0], salience, aids, options.max_length, options.seed))
    unknown = unknown_share(prepared, models[0])
    if unknown > MOST_UNKNOWN:
        raise CorpusError(
            f"{unknown:.0%} of the tokens of {corpus.name} are unknown to the tokenizer: the texts do not fit the model"
        )
    floor = cast.rounded()
    if options.knockout and salience:
        for model in models:
            check_hidable(model.backbone)  # before hours of measuring
    return _Question(cast, texts, prepared, aids, selectors, floor, options)


def _passes(question: _Question) -> tuple[list[Subject], Prepared, MeasureOptions]:
    """All models over all texts, as `measure` takes them."""
    models, options = question.cast.models, question.options
    subjects = [Subject(model, i in (0, len(models))) for i, model in enumerate([*models, *question.floor])]
    return (
        subjects,
        question.prepared,
        MeasureOptions(options.batch_size, options.memory, options.parts, options.progress),
    )


def _compared(question: _Question) -> Comparison:
    """Measure, test, answer."""
    cast, prepared, options, floor = question.cast, question.prepared, question.options, question.floor
    models, names, selectors = cast.models, cast.names, question.selectors
    salience = prepared.salience
    arrays, sites, reasons = measure(*_passes(question))
    data, rounding = split_floor(dataset([*names, *(model.name for model in floor)], prepared, arrays, sites), floor)
    if options.knockout and salience:
        data = data.assign(_knocked_out(cast, prepared, options))
    if cast.roles.seeds:
        data = data.assign(jsd_seeds=_between_seeds(cast, prepared, options))
    noise = _noise(cast, prepared, options) if options.noise_band and salience else None
    tests = infer(data, roles=cast.roles, sesoi=options.sesoi, seed=options.seed, noise=noise)
    data = data.isel(model=slice(cast.answered))  # a seed bears on another model's answer and has none of its own
    virtual = virtual_tokens(data, cast.given[: cast.answered])
    weights, heads = _weights(cast)
    answers = _answers(data, tests, weights, prepared.facts, cast, options)
    passages = choose_passages(models[: cast.answered], prepared, tests, options.passages, options.seed)
    facts = provenance(cast, question.texts, prepared, {name: getattr(options, name) for name in OPTIONS}) | {
        "aids": about_aids(question.aids),
        "rows": selectors[0],
        "rounding": rounding,
        "virtual_tokens": virtual,
        "warnings": [
            *readers(names[: cast.answered], selectors[: cast.answered - 1]),
            *beside_weights(cast.beside),
            *in_front(virtual),
            *gaps(names, reasons),
            *about_seeds(cast),
            *about_texts(models[0], question.texts, prepared, options.max_length),
        ],
    }
    return Comparison(data, weights, heads, tests, answers, passages, facts)


def _knocked_out(cast: Cast, prepared: Prepared, options: CompareOptions) -> dict[str, xr.Variable]:
    """What hiding the words of the headline definition does, by name; NaN for seeds, which are not knocked out."""
    asked = KnockoutOptions(batch_size=options.batch_size, seed=options.seed, progress=options.further)
    names = cast.names[: cast.answered]
    found = knockout(cast.models[: cast.answered], prepared, asked).assign_coords(model=names)
    told = {name: found.attrs[name] for name in ("salience", "outcome", "unit", "reason")}
    whole = found.reindex(model=cast.names)
    return {
        name: whole[name].assign_attrs(told | {"long_name": title, "units": found.attrs["unit"]}).variable
        for name, title in KNOCKED_OUT.items()
    }


def _between_seeds(cast: Cast, prepared: Prepared, options: CompareOptions) -> xr.Variable:
    """For each tuned model with seeds, the mean over them of the JSD from its maps to theirs; NaN for other models."""
    models, found = dict(zip(cast.names, cast.models, strict=True)), {}
    asked = MeasureOptions(options.batch_size, options.memory, progress=options.further)
    for name, seeds in cast.roles.seeds.items():
        runs = [Subject(models[run], reference=run == name) for run in (name, *seeds)]
        found[name] = measure(runs, prepared, asked).arrays["jsd"][1:].mean(0)
    none = np.full_like(next(iter(found.values())), np.nan)
    values = np.stack([found.get(name, none) for name in cast.names])
    return xr.Variable(("model", "example", "layer", "head"), values, VARIABLES["jsd_seeds"].attributes())


def _noise(cast: Cast, prepared: Prepared, options: CompareOptions) -> xr.DataArray:
    """Random weight noise of the size of each answer's change."""
    models = dict(zip(cast.names, cast.models, strict=True))
    tuned = {name: models[name] for name in cast.roles.answers}
    asked = MeasureOptions(options.batch_size, options.memory, progress=options.further)
    return noise_band(cast.models[0], tuned, prepared, draws=options.noise_band, options=asked)


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


def _weights(cast: Cast) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Change of every matrix and of every head's products, of each tuned model, from the weights as stored."""
    weights, heads = [], []
    for model, name in zip(cast.given[1 : cast.answered], cast.names[1 : cast.answered], strict=True):
        weights.append(weight_changes(cast.given[0], model, spectra="none").assign(model=name))
        heads.append(head_changes(cast.given[0], model).assign(model=name))
    return pd.concat(weights, ignore_index=True), pd.concat(heads, ignore_index=True)


def _answers(
    data: xr.Dataset, tests: pd.DataFrame, weights: pd.DataFrame, facts: Facts, cast: Cast, options: CompareOptions
) -> dict[str, dict[str, Answer]]:
    """For each tuned model, for each definition. weights: of all tuned models; facts: of the definitions."""
    weights, roles = weights[~weights["model"].isin(cast.beside)], cast.roles
    answers = {}
    for model in (str(name) for name in data["model"].values[1:]):
        if "focus" not in data:
            answers[model] = {"": evidence.not_asked(data.sizes["example"], options.probe)}
            continue
        changed = weights[(weights["model"] == model) & (weights["kind"] == "backbone")]
        same = len(changed) > 0 and bool((changed["entries"] == changed["identical"]).all())
        null, runs = roles.nulls.get(model, ""), 1 + len(roles.seeds.get(model, ()))
        case = Case(model, "", options.sesoi, same_weights=same, null=null, runs=runs, rival=roles.answers[0])
        answers[model] = _of_definitions(tests[tests["model"] == model], data, case, facts)
    return answers


def _of_definitions(tests: pd.DataFrame, data: xr.Dataset, case: Case, facts: Facts) -> dict[str, Answer]:
    """The answer of one model under each definition; the first says how many of the others agree."""
    knocked = data["reliance"].attrs if "reliance" in data else {}
    found = {}
    for salience in (str(name) for name in data["salience"].values):
        outcome = knocked if knocked.get("salience") == salience else None
        regression = facts[salience]["control"] == "regression"
        asked = replace(case, salience=salience, regression=regression, knockout=outcome)
        found[salience] = evidence.decide(tests[tests["salience"] == salience], data, asked)
    first = next(iter(found))
    if agreement := evidence.agreement(found):
        found[first] = replace(found[first], remarks=(*found[first].remarks, agreement))
    return found
