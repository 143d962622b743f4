"""Why attention on marked words moved: refocusing among words, or release from sinks (METRICS 3.2)."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def refocusing_and_release(data: xr.Dataset, model: str, salience: str) -> NDArray[np.float64]:
    """The change of attention on marked words, base (the first model) to `model`, split in two: (2, N, L, H).

    Shares of all attention, in −1 … 1. Of a text, c is the mean attention on words over the measured rows, m that on
    marked words over the same rows, and G = m/c. Then Δm = c̄·ΔG (refocusing) + Ḡ·Δc (sink release), exactly. The mean
    of m/c over rows would not do: its rows without attention on words fall out. NaN for a text without a marked word,
    which has no attention to be split.
    Hand example: c .5 → .8 and m .1 → .4 give G .2 → .5, refocusing .65 · .3 = .195, release .35 · .3 = .105, Δm .3.
    """
    order = ("model", "example", "layer", "head")
    chosen = data.sel(salience=salience, model=[data["model"].values[0], model])
    content = chosen["content_mass"].transpose(*order).values
    mass = chosen["mass"].where(chosen["share"].notnull()).transpose(*order).values
    share = mass / np.where(content > 0, content, np.nan)
    return np.stack([content.mean(0) * (share[1] - share[0]), share.mean(0) * (content[1] - content[0])])
