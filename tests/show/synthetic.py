"""A comparison as a real run gives it, made of random numbers with a known effect."""

import itertools
import re
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from attnlens.analysis.inference import beside
from attnlens.analysis.results import Answer, Comparison, Passage, Rung
from attnlens.analysis.word_maps import BETWEEN, WordMaps, quantised

TEXTS, DOCUMENTS = 60, 40
MODULES = ("query", "key", "value", "output", "feed-forward", "norm")
SHIFT = {"spans": (0.0, 0.001, 0.004, 0.012, 0.048, 0.088), "keyness": (0.0, 0.0, 0.002, 0.004, 0.012, 0.031)}
TEXTS_OF_CONTRACTS = (
    "This Agreement shall be governed by and construed in accordance with the laws of the State of Delaware.",
    "Neither party may assign this Agreement without the prior written consent of the other party.",
    "The Licensor grants to the Licensee a non-exclusive, worldwide licence to use the Software.",
    "Either party may terminate this Agreement upon sixty (60) days' written notice to the other.",
    "In no event shall the aggregate liability of the Supplier exceed the fees paid in the preceding year; "
    "this limit applies to every claim, whether in contract, in tort or otherwise, and survives termination.",
    "The Receiving Party shall keep all Confidential Information secret and shall not disclose it to anyone.",
    "The Distributor shall purchase at least 10,000 units of the Products in every calendar quarter.",
    "During the Term the Company shall maintain insurance with limits of not less than $2,000,000.",
)


def make_comparison(
    *,
    tuned: tuple[str, ...] = ("minilm-contracts",),
    salience: tuple[str, ...] = ("spans", "keyness"),
    scale: float = 1.0,
    texts: tuple[str, ...] = TEXTS_OF_CONTRACTS,
    base: str = "all-MiniLM-L6-v2",
    shape: tuple[int, int] = (6, 12),
    older: bool = False,
    seed: int = 0,
) -> Comparison:
    """A comparison of `base` with each of `tuned`; `scale` 0 makes them identical.

    shape: layers and heads. older: without divergences, received attention, heads' products, floors and histories.
    """
    rng, extra = np.random.default_rng(7 + seed), np.random.default_rng(11 + seed)
    models = (base, *tuned)
    data = _data(rng, models, salience, scale, shape)
    if not older:
        data = _with_divergence(extra, data, salience, scale)
    answers = {name: _answers(name, salience, scale) for name in tuned}
    passages = tuple(
        _passage(rng, text, number, (len(models), shape[0]), scale=scale, rate=0.18 if salience else 0.0)
        for number, text in enumerate(texts)
    )
    weights = _weights(rng, tuned, scale, shape[0])
    provenance = _provenance(models)
    if not older:
        # The last tuned model was stored in bfloat16: its norms moved by rounding alone.
        last = (weights["model"] == tuned[-1]) if len(tuned) > 1 else False
        weights = weights.assign(floor=np.where(last, 0.00166, 0.0), rounding=False)
        norms = last & (weights["module"] == "norm")
        weights.loc[norms, ["relative", "rounding"]] = 0.00166, True
        weights.loc[norms, "delta_norm"] = 0.00166 * weights.loc[norms, "base_norm"]
        for record, run in zip(provenance["models"][1:], range(len(tuned)), strict=True):
            record["training"] = _training(extra, run)
    return Comparison(
        data=data,
        weights=weights,
        heads=_heads(extra, () if older else tuned, scale, shape),
        tests=_tests(data, tuned, salience),
        answers=answers,
        passages=passages,
        provenance=provenance,
    )


def _with_divergence(rng: np.random.Generator, data: xr.Dataset, salience: tuple[str, ...], scale: float) -> xr.Dataset:
    """`data` with the divergences of the maps and, where words are marked, received attention (times uniform)."""
    dims = ("model", "example", "layer", "head")
    sizes = tuple(data.sizes[name] for name in dims)
    depth = np.linspace(0, 1, sizes[2])[:, None]
    size = np.linspace(1.0, 0.4, max(sizes[0] - 1, 1))[:, None, None, None]
    jsd = scale * size * (0.01 + 0.11 * depth**2) * rng.gamma(2.0, 0.5, size=(sizes[0] - 1, *sizes[1:]))
    jsd = np.concatenate([np.full((1, *sizes[1:]), np.nan), jsd])
    states = (
        np.linspace(0, 0.4 * scale, sizes[2] + 1) * np.ones((*sizes[:2], 1)) / np.arange(1, sizes[0] + 1)[:, None, None]
    )
    states[0] = np.nan
    found = data.assign(
        sink_census=(data["content_mass"] < 0.7).astype(float),
        hidden_change=(("model", "example", "depth"), states),
        cka=(("model", "depth"), 1 - states[:, 0] ** 2),
        cka_tokens=(("model", "depth"), 4321 + 0 * states[:, 0]),
        jsd=(dims, jsd),
        kl_forward=(dims, 2.3 * jsd),
        kl_backward=(dims, 2.1 * jsd),
        tv=(dims, np.sqrt(jsd / 2)),
    )
    if salience:
        relation = {
            "received": "share_matched",
            "received_matched": "share_matched",
            "received_control": "share_control",
        }
        found = found.assign({name: 5.0 * data[source] for name, source in relation.items()})
        base, change = data["share"].isel(model=0), data["share"] - data["share"].isel(model=0)
        follows = {"share_value": 1.1, "share_random": 0.1, "share_swapped": -0.2, "received_auroc": 2.0}
        found = found.assign({n: (base + f * change).transpose(*dims, "salience") for n, f in follows.items()})
        found = found.assign(received_ap=data["share"], received_precision=0.9 * data["share"])
        # The mean of a product over rows is not the product of the means.
        uneven = rng.uniform(0.8, 1.1, size=(1, *sizes[1:], 1))
        shift = 1 + 0.05 * scale * rng.normal(size=data["share"].shape)
        shift[0] = 1.0
        found = found.assign(mass=data["content_mass"] * data["share"] * uneven * shift)
    return found


def _heads(rng: np.random.Generator, tuned: tuple[str, ...], scale: float, shape: tuple[int, int]) -> pd.DataFrame:
    rows = [
        (model, layer, head, circuit, scale * (0.01 + 0.05 * layer / shape[0]) * rng.uniform(0.5, 2) / (1 + number))
        for number, model in enumerate(tuned)
        for layer, head, circuit in itertools.product(range(shape[0]), range(shape[1]), ("QK", "OV"))
    ]
    return pd.DataFrame(rows, columns=["model", "layer", "head", "circuit", "relative"])


def _training(rng: np.random.Generator, run: int) -> dict[str, object]:
    steps = np.arange(4, 204, 4)
    history = [
        {"step": int(step), "loss": 2.4 * float(np.exp(-step / (60 + 30 * run))) + rng.uniform(0.1, 0.3)}
        for step in steps
    ]
    for step in range(50, 201, 50):
        quality = 0.82 - 0.05 * run - 0.5 * float(np.exp(-step / 40))
        history.append({"step": step, "heldout_loss": 1.2 - quality, "accuracy": quality + 0.03, "macro_f1": quality})
    return {
        "method": ("full", "lora", "last_k", "head")[run % 4],
        "task": "sequence-classification",
        "seed": run,
        "parameters": {"trainable": 22_713_216 // (1 + 40 * run), "total": 22_713_216},
        "metrics": {"accuracy": 0.843 - 0.05 * run, "macro_f1": 0.813 - 0.05 * run, "loss": 0.39, "best_step": 200},
        "seconds": 61.5 + run,
        "history": sorted(history, key=lambda row: row["step"]),
    }


def _data(
    rng: np.random.Generator,
    models: tuple[str, ...],
    salience: tuple[str, ...],
    scale: float,
    of_model: tuple[int, int],
) -> xr.Dataset:
    shape = (len(models), TEXTS, *of_model)
    layers, _ = of_model
    depth = 5 * np.linspace(0, 1, layers)[:, None]
    skew = rng.gamma(1.2, 0.8, size=of_model)
    text_noise = rng.normal(size=(1, TEXTS, 1, 1))
    common = rng.normal(scale=0.03, size=(1, *shape[1:]))
    tuning = np.array([0.0, *(scale * factor for factor in (1.0, 0.55, -0.4, 0.2, 0.1, 0.05)[: len(models) - 1])])
    own = tuning[:, None, None, None] * (1 + 1.1 * text_noise)

    def noise(size: float) -> np.ndarray:
        draws = rng.normal(scale=size, size=shape)
        return np.where(np.arange(len(models))[:, None, None, None] > 0, scale * draws, 0.0)

    dims = ("model", "example", "layer", "head")
    content = 0.72 + common - 0.01 * depth - 0.02 * own + noise(0.01)
    if layers > 3:
        content[:, :, 2, 3], content[:, :, 3, -5] = 0.02, 0.035
    direction = np.where(skew > 0.25, -1.0, 1.6)
    entropy_content = 0.82 - 0.01 * depth + common + direction * skew * own * 0.006 * depth**1.5 + noise(0.02)
    variables = {
        "entropy": (dims, 3.4 * entropy_content.clip(0, 1)),
        "entropy_content": (dims, entropy_content.clip(0, 1)),
        "content_mass": (dims, content),
    }
    if salience:
        places = np.linspace(0, 5, layers)
        shift = np.array([np.interp(places, range(6), SHIFT[name]) for name in salience]).T[:, None] * skew[..., None]
        control = (0.2 + common)[..., None] + np.zeros((len(models), 1, 1, 1, len(salience)))
        matched = control + 0.03 * depth[..., None] + own[..., None] * shift + noise(0.03)[..., None]
        matched = matched.clip(0.01, 0.95)
        matched[:, :3] = np.nan  # three texts without a match
        share = 0.05 + matched
        values = {"share": share, "share_matched": matched, "share_control": control, "focus": matched - control}
        values["log_odds"] = np.log(matched / control)
        variables |= {name: ((*dims, "salience"), array) for name, array in values.items()}
    coords = {
        "model": list(models),
        "id": ("example", [f"text-{i:03d}" for i in range(TEXTS)]),
        "document": ("example", [f"contract-{i % DOCUMENTS:02d}" for i in range(TEXTS)]),
        "label": ("example", [("assignment", "governing law", "licence")[i % 3] for i in range(TEXTS)]),
        "tokens": ("example", rng.integers(24, 90, size=TEXTS)),
        "stack": ("layer", ["encoder"] * layers),
        "kind": ("layer", ["self"] * layers),
        "number": ("layer", np.arange(layers)),
    }
    return xr.Dataset(variables, coords=coords | ({"salience": list(salience)} if salience else {}))


def _row(differences: np.ndarray, document: np.ndarray, width: float) -> dict[str, float]:
    frame = pd.Series(differences).groupby(document).mean().dropna()
    mean, error = frame.mean(), frame.std(ddof=1) / np.sqrt(len(frame))
    p = 1.0 if error == 0 else float(2 * stats.norm.sf(abs(mean) / error))
    equivalence = 0.0 if error == 0 else float(stats.norm.sf((0.02 - abs(mean)) / error))
    return {
        "estimate": mean, "low": mean - width * error, "high": mean + width * error, "p": p,
        "p_adjusted": min(1.0, 6 * p), "p_equivalence": equivalence,
        "effect_size": 0.0 if error == 0 else mean / frame.std(ddof=1), "n": len(frame),
    }  # fmt: skip


def _tests(data: xr.Dataset, tuned: tuple[str, ...], salience: tuple[str, ...]) -> pd.DataFrame:
    document, rows = data["document"].values, []
    for index, model in enumerate(tuned, start=1):
        changes = {"": (data["entropy_content"][index] - data["entropy_content"][0]).values}
        for number, name in enumerate(salience):
            changes[name] = (data["focus"][index] - data["focus"][0]).values[..., number]
        for name, change in changes.items():
            by_layer, by_head = ("profile", "focus head") if name else ("entropy layer", "entropy head")
            key = {"model": model, "salience": name, "level": "A"}
            for layer in range(change.shape[1]):
                row = _row(change[:, layer].mean(-1), document, 2.7)
                rows.append(key | {"family": by_layer, "layer": layer, "head": -1} | row)
            for layer, head in np.ndindex(change.shape[1:]):
                row = _row(change[:, layer, head], document, 1.96)
                rows.append(key | {"family": by_head, "layer": layer, "head": head} | row)
            if not name and "jsd" in data:
                jsd = data["jsd"][index].values.mean(-1)
                untested = {"p": np.nan, "p_adjusted": np.nan, "effect_size": np.nan, "p_equivalence": np.nan}
                for layer in range(jsd.shape[1]):
                    row = _row(jsd[:, layer], document, 2.7) | untested
                    rows.append(key | {"family": "jsd layer", "layer": layer, "head": -1} | row)
            if name:
                row = _row(change.mean(-1).sum(-1), document, 1.96)
                rows.append(key | {"family": "total", "layer": -1, "head": -1} | row)
    order = ["model", "salience", "family", "layer", "head", "estimate", "low", "high"]
    found = [pd.DataFrame(rows)]
    for index, model in enumerate(tuned, start=1) if salience else ():
        shift = (data.isel(model=index) - data.isel(model=0)).sel(salience=salience[0])
        bands = beside(shift, document, seed=0)
        found += [band.assign(model=model, salience=salience[0], level="A") for band in bands]
    tests = pd.concat(found, ignore_index=True)
    return tests[[*order, "p", "p_adjusted", "p_equivalence", "effect_size", "n", "level"]]


def _weights(rng: np.random.Generator, tuned: tuple[str, ...], scale: float, layers: int) -> pd.DataFrame:
    rows = []
    for number, model in enumerate(tuned):
        for layer, module in itertools.product(range(layers), MODULES):
            size = (
                0.0
                if module == "norm"
                else scale * (0.004 + 0.036 * layer / layers) * rng.uniform(0.6, 1.4) / (1 + number)
            )
            rows.append((model, f"encoder.layer.{layer}.{module}.weight", module, layer, "backbone", size * 20, 20.0))
        rows.append((model, "embeddings.word_embeddings.weight", "embeddings", -1, "backbone", 0.0, 300.0))
        rows.append((model, "classifier.weight", "classifier", -1, "head", 0.0, np.nan))
    frame = pd.DataFrame(rows, columns=["model", "matrix", "module", "layer", "kind", "delta_norm", "base_norm"])
    return frame.assign(
        relative=frame["delta_norm"] / frame["base_norm"],
        entries=147456,
        identical=np.where(frame["delta_norm"] == 0, 1.0, 0.02),
    )


def _answers(model: str, salience: tuple[str, ...], scale: float) -> dict[str, Answer]:
    if not salience:
        sentence = "No salience was asked for, so there is no focus answer."
        return {"": Answer("not asked", sentence)}
    if scale == 0:
        sentence = "Identical. The two checkpoints give exactly the same attention on every text."
        return {name: Answer("identical", sentence, rungs=_rungs(model, "not applicable")) for name in salience}
    sentence = (
        "Yes, on these texts, mainly in layer 6. Of 100 units of attention on words, 32 went to the marked words "
        "before tuning, 39 after. Position-matched ordinary words explain part; net in layer 6: +8.8 "
        "(95 % +4.7 … +12.9; 57 texts)."
    )
    yes = Answer("yes", sentence, (5, 4), {"base": 0.32, "tuned": 0.39, "net": 0.088}, _rungs(model, "yes"))
    unclear = Answer("unclear", "Unclear under this definition: layer 6 moved by +3.1, its interval reaches +1.2.")
    return {name: yes if number == 0 else unclear for number, name in enumerate(salience)}


def _rungs(model: str, status: str) -> tuple[Rung, ...]:
    twin = f"attnlens finetune all-MiniLM-L6-v2 --null-twin --data train.jsonl -o {model}.ckpt"
    return (
        Rung(1, "More than the choice of texts?", status, "Layer 6: +8.8 points, 95 % +4.7 … +12.9, p < .001."),
        Rung(2, "Large enough to matter?", status, "The lower bound lies above 2 points."),
        Rung(3, "More than the same training on shuffled labels?", "not tested", "No shuffled twin.", twin),
        Rung(4, "Repeated over six seeds?", "not tested", "One run.", "attnlens report BASE --seeds runs/"),
        Rung(5, "Do the outputs rely on these words?", "not tested", "No knockout.", "attnlens report --knockout"),
    )


def _passage(
    rng: np.random.Generator, text: str, number: int, sizes: tuple[int, int], *, scale: float, rate: float
) -> Passage:
    pieces = tuple(re.findall(r"\w+|\W+", text))
    is_word = np.array([bool(re.match(r"\w", piece)) for piece in pieces])
    marked = is_word & (rng.random(len(pieces)) < rate)
    models, layers = sizes
    heads = (*((layer, -1) for layer in range(layers)), (5, 2), (5, 7), (4, 0), (4, 9), (3, 1))
    logits = rng.normal(scale=0.9, size=(1, len(heads), len(pieces))).repeat(models, 0)
    depth = np.array([layer / max(1, layers - 1) for layer, _ in heads])[None, :, None]
    logits[1:] += scale * (1.4 * marked * depth + rng.normal(scale=0.2, size=logits[1:].shape))
    weights = np.exp(logits) * is_word
    received = 100 * weights / weights.sum(-1, keepdims=True)
    return Passage(
        id=f"text-{number:03d}",
        label=("governing law", "assignment", "licence", None)[number % 4],
        words=pieces,
        is_word=tuple(is_word.tolist()),
        marked=tuple(marked.tolist()),
        heads=heads,
        received=received,
        maps=_maps(np.random.default_rng(number), logits[..., is_word]),
    )


def _maps(rng: np.random.Generator, logits: np.ndarray) -> WordMaps:
    """Every word looks at what words receive, at itself and, a third of the time, at no word."""
    words = logits.shape[-1]
    own = 2.0 * np.eye(words) + rng.normal(scale=0.6, size=(1, logits.shape[1], words, words))
    weights = np.exp(logits[:, :, None] + own)
    weights *= 0.66 / weights.sum(-1, keepdims=True)
    outside = np.broadcast_to([0.06, 0.24, 0.04], (*weights.shape[:3], 3))
    looks = np.concatenate([weights, outside], -1)
    return quantised(np.concatenate([looks, looks[:, :, :3]], 2), ("[CLS]", "[SEP]", BETWEEN))


def _provenance(models: tuple[str, ...]) -> dict[str, Any]:
    return {
        "models": [
            {"name": name, "path": name, "sha256": f"{index + 10:02x}" * 32, "dtype": "float32"}
            for index, name in enumerate(models)
        ],
        "data": {"name": "evaluation.jsonl", "sha256": "ab" * 32, "texts": TEXTS, "documents": DOCUMENTS},
        "salience": {"spans": {"match_rate": 0.7431, "marked_words": 412.0, "control": "matched"}},
        "options": {"limit": 200, "max_length": 512, "seed": 0, "sesoi": 0.02},
        "rows": "content",
        "rounding": None,
        "device": "cpu",
        "versions": {"attnlens": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "warnings": [
            "3 of 60 texts have no marked word with a match and are left out of the focus statistics.",
            "2 spans were cut by the limit of 512 tokens.",
        ],
        "command": f"attnlens report {models[0]} {' '.join(models[1:])} --data evaluation.jsonl",
    }
