"""A synthetic comparison of two tuned models and a shuffled twin, with all that may stand behind an answer."""

import dataclasses

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from tests.show.synthetic import make_comparison

MODELS, NULL = ("full", "LoRA"), "full on shuffled labels"


def make_evidence(shape: tuple[int, int] = (6, 12), salience: tuple[str, ...] = ("spans", "keyness")) -> Comparison:
    """Noise band, beyond null, seeds and a knockout of the first definition; the twin is named as a null."""
    made = make_comparison(tuned=(*MODELS, NULL), shape=shape, salience=salience)
    profile = made.tests[made.tests["family"] == "profile"]
    real = profile[profile["model"] == MODELS[0]]
    noise = real.assign(family="noise band", estimate=0.0, low=-0.004, high=0.005, p_adjusted=np.nan, n_seeds=19)
    null = profile[profile["model"] == NULL]
    beyond = real.assign(family="beyond null", **{name: real[name] - null[name].to_numpy() for name in ("estimate",)})
    seeds = real.assign(family="seeds", n_seeds=6)
    between = made.tests.query("family == 'jsd layer' and model == 'full'")
    between = between.assign(family="jsd seeds", n_seeds=6, estimate=between["estimate"] / 2)
    single = {"salience": salience[0], "layer": -1, "head": -1, "n": 33}
    rows = [
        {"family": family, "model": model, "estimate": value, "low": value - 0.03, "high": value + 0.03, "p": p}
        for family, values in {"causal focus": (0.08, 0.01, 0.0), "reliance": (0.05, 0.02, -0.01)}.items()
        for model, value, p in zip((*MODELS, NULL), values, (0.001, 0.4, 0.6), strict=True)
    ]
    knocked = pd.DataFrame(rows).assign(**single)
    tests = pd.concat([made.tests, noise, beyond, seeds, between, knocked], ignore_index=True)
    told = {"salience": salience[0], "outcome": "label loss", "unit": "nats", "draws": 4}
    sizes = (made.data.sizes["model"], made.data.sizes["example"])
    data = made.data.assign(reliance=(("model", "example"), np.zeros(sizes), told))
    provenance = made.provenance | {"nulls": {MODELS[0]: NULL}}
    return dataclasses.replace(made, data=data, tests=tests, provenance=provenance)
