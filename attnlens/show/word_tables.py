"""The tables of marked words: attention they receive, and why the attention on them moved."""

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
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
    """The change of attention on marked words of every head, split in two (METRICS 3.2), in points of all attention.

    Of a text, c is the mean attention on words over the measured rows, m that on marked words over the same rows, and
    G = m/c. Then Δm = c̄·ΔG (refocusing) + Ḡ·Δc (sink release), exactly. The mean of m/c over rows would not do: its
    rows without attention on words fall out.
    """
    data, order = comparison.data, ("example", "model", "layer", "head")
    chosen = data.sel(salience=comparison.salience[0])
    content = data["content_mass"].transpose(*order).values
    # A text without a marked word has no share, and no attention to be split.
    mass = chosen["mass"].where(chosen["share"].notnull()).transpose(*order).values
    share = mass / np.where(content > 0, content, np.nan)
    documents, frames = data["document"].values, []
    for index, model in enumerate(comparison.models[1:], start=1):
        (c0, c1), (g0, g1) = ((values[:, 0], values[:, index]) for values in (content, share))
        terms = np.stack([(c0 + c1) / 2 * (g1 - g0), (g0 + g1) / 2 * (c1 - c0)], 1)  # (N, 2, L, H)
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
