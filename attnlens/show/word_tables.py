"""The tables of marked words: attention they receive, and why the attention on them moved."""

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.analysis.split import refocusing_and_release
from attnlens.core.bands import simultaneous_band
from attnlens.core.resampling import document_means
from attnlens.show.tables import over_documents


def received_table(comparison: Comparison) -> pd.DataFrame:
    """Received attention (times uniform) of marked words and their controls under the headline salience, by layer.

    change: marked minus control, tuned minus base; low, high: its band over documents, simultaneous over the layers,
    since the layer that is told is the one that changed most.
    """
    data = comparison.data
    names = ("received_matched" if "received_matched" in data else "received", "received_control")
    # (N, M, L): mean over heads, which hold NaN where a layer has fewer
    marked, control = (
        data[name].sel(salience=comparison.salience[0]).mean("head").transpose("example", "model", "layer").values
        for name in names
    )
    means = document_means(np.stack([marked, control], 1), data["document"].values)  # (D, 2, M, L)
    level = over_documents(means)
    frames = []
    for index, model in enumerate(comparison.models[1:], start=1):
        gap = means[:, 0] - means[:, 1]
        band = simultaneous_band(gap[:, index] - gap[:, 0], rng=np.random.default_rng(0))
        columns = {
            "model": model,
            "layer": np.arange(1, level.shape[-1] + 1),
            "marked_base": level[0, 0],
            "marked_tuned": level[0, index],
            "control_base": level[1, 0],
            "control_tuned": level[1, index],
            "change": band.estimate,
            "low": band.low,
            "high": band.high,
            "n": band.n,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def refocusing_table(comparison: Comparison) -> pd.DataFrame:
    """The change of attention on marked words of every head, split in two (METRICS 3.2), in points of all attention."""
    documents, frames = comparison.data["document"].values, []
    for model in comparison.models[1:]:
        terms = np.moveaxis(refocusing_and_release(comparison.data, model, comparison.salience[0]), 0, 1)
        means = document_means(terms, documents)
        refocused, released = 100 * over_documents(means)
        layer, head = np.nonzero(np.isfinite(refocused))
        columns = {
            "model": model,
            "layer": layer + 1,
            "head": head + 1,
            "refocusing": refocused[layer, head],
            "sink_release": released[layer, head],
            "change": (refocused + released)[layer, head],
            "n": np.isfinite(means[:, 0]).sum(0)[layer, head],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
