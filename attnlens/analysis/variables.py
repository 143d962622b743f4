"""The dataset of a comparison: measured arrays with their labels, and what each is: title, unit, bounds, source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from attnlens.analysis.parts import Arrays
from attnlens.analysis.prepare import Prepared
from attnlens.checkpoints.tape import Site
from attnlens.core.pairs import PAIRS
from attnlens.core.rows import STATISTICS


@dataclass(frozen=True)
class Variable:
    """One variable. low and high hold for texts of any length; infinite where nothing holds.

    axes: names of its axes; empty: model, example, layer, head, salience, as many as it has.
    """

    title: str
    unit: str
    reference: str
    low: float = 0.0
    high: float = math.inf
    axes: tuple[str, ...] = ()

    def attributes(self) -> dict[str, Any]:
        """As attributes of an xarray variable, under CF's names; a bound that is none is left out."""
        bounds = {"valid_min": self.low, "valid_max": self.high}
        finite = {name: float(bound) for name, bound in bounds.items() if math.isfinite(bound)}
        return {"long_name": self.title, "units": self.unit, **finite, "references": self.reference}


def _row(name: str, title: str) -> Variable:
    """Mean over rows of a statistic of the registry."""
    record = STATISTICS[name]
    # A bound that grows with the number of keys is none for all texts.
    high = record.high(2) if record.high(2) == record.high(3) else math.inf
    return Variable(title, record.unit, record.reference, record.low, high)


def _pair(name: str, title: str) -> Variable:
    record = PAIRS[name]
    return Variable(title, record.unit, record.reference, record.low, record.high)


_SHARE, _RECEIVED = STATISTICS["share"], STATISTICS["received"]
# Names as `measure` gives them. Weights of matched words and controls may be over 1: their shares have no upper bound.
VARIABLES: dict[str, Variable] = {
    "entropy": _row("entropy", "entropy of a row"),
    "entropy_normalized": _row("entropy_normalized", "entropy of a row, over that of a uniform one"),
    "effective_keys": _row("effective_keys", "number of keys with like entropy"),
    "entropy_content": _row("entropy_content", "entropy within content, over that of uniform attention on it"),
    "content_mass": _row("mass", "attention on content"),
    "sink_census": Variable("heads with a sink among special and first keys", "share of heads", "Gu et al. 2025", 0, 1),
    "virtual_mass": _row("mass", "attention on virtual tokens"),
    "jsd": _pair("jsd", "Jensen–Shannon divergence from base"),
    "jsd_seeds": _pair("jsd", "Jensen–Shannon divergence from other seeds of the same training"),
    "kl_forward": _pair("kl_forward", "KL divergence of tuned from base"),
    "kl_backward": _pair("kl_backward", "KL divergence of base from tuned"),
    "tv": _pair("tv", "attention moved against base"),
    "mass": _row("mass", "attention on marked words"),
    "lift": _row("lift", "attention on a marked token, against any token"),
    "log_odds": _row("log_odds", "log-odds of marked words against other content"),
    "entropy_between": _row("entropy_between", "entropy between sinks, marked and other words"),
    "share": _row("share", "share of marked words in the attention on content"),
    "share_value": _row("share_value", "share of marked words in the vectors taken over from content"),
    "share_matched": Variable("share of marked words that have a control", _SHARE.unit, "METRICS 2, C1"),
    "share_control": Variable("share of their controls", _SHARE.unit, "METRICS 2, C1"),
    "share_random": Variable("share of as many random words", _SHARE.unit, "METRICS 2, C2", 0, 1),
    "share_swapped": Variable("share of another document's salience", _SHARE.unit, "METRICS 2, C3", 0, 1),
    "focus": Variable("net share: marked words less their controls", _SHARE.unit, "METRICS 3.4", -math.inf),
    "received": Variable("attention a marked token receives", _RECEIVED.unit, _RECEIVED.reference),
    "received_matched": Variable("the same, of marked words with a control", _RECEIVED.unit, _RECEIVED.reference),
    "received_control": Variable("the same, of their controls", _RECEIVED.unit, _RECEIVED.reference),
    "received_auroc": Variable(
        "AUROC of received attention for marked tokens", "probability", "Mann & Whitney 1947; METRICS 3.5", 0, 1
    ),
    "received_ap": Variable("average precision of received attention for marked tokens", "share", "METRICS 3.5", 0, 1),
    "received_precision": Variable(
        "marked tokens among as many that receive most attention", "share", "Arras et al. 2022", 0, 1
    ),
    "hidden_change": Variable(
        "change of hidden states against base", "share of their length", "METRICS 5", axes=("model", "example", "depth")
    ),
    # A ratio of unbiased estimates: it may pass its bounds by a little.
    "cka": Variable(
        "debiased linear CKA of hidden states with base", "1", "Song et al. 2012", -math.inf, axes=("model", "depth")
    ),
    "cka_tokens": Variable("tokens that CKA saw", "tokens", "Nguyen et al. 2021", axes=("model", "depth")),
}


def dataset(names: Sequence[str], prepared: Prepared, arrays: Arrays, sites: Sequence[Site]) -> xr.Dataset:
    """Arrays with their labels; each says what it is."""
    dims = ("model", "example", "layer", "head", "salience")
    salience = {"salience": list(prepared.salience)} if prepared.salience else {}
    examples = prepared.examples
    return xr.Dataset(
        {
            name: (VARIABLES[name].axes or dims[: values.ndim], values, VARIABLES[name].attributes())
            for name, values in arrays.items()
        },
        coords={
            "model": list(names),
            "id": ("example", [example.id for example in examples]),
            "document": ("example", [example.document for example in examples]),
            "label": ("example", [example.label or "" for example in examples]),
            "tokens": ("example", [len(encoded.ids) for encoded in prepared.encodings]),
            "stack": ("layer", [site.stack for site in sites]),
            "kind": ("layer", [site.kind for site in sites]),
            "number": ("layer", [site.number for site in sites]),
            **salience,
        },
    )
