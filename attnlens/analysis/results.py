"""What a comparison is: labelled arrays, tables, the answer, and where they came from; saved and opened whole."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.core.errors import AttnlensError

STORE = "comparison.zarr"
TABLES = "tables"


@dataclass(frozen=True)
class Rung:
    """One rung of the evidence ladder (METRICS 6.8): a question, its answer, and the command that would test it."""

    number: int
    question: str
    status: str  # "yes", "no", "not tested" or "not applicable"
    detail: str
    command: str = ""


@dataclass(frozen=True)
class Answer:
    """Did attention move to the marked words? The verdict in plain words, and what stands behind it."""

    verdict: str  # "yes", "away", "no", "unclear", "identical" or "not asked" (no salience)
    sentence: str
    layers: tuple[int, ...] = ()
    headline: dict[str, float] = field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()

    def __str__(self) -> str:
        """Sentence and ladder as plain text."""
        ladder = [f"  {rung.number}. {rung.question}: {rung.status}. {rung.detail}" for rung in self.rungs]
        return "\n".join([self.sentence, *ladder])


@dataclass(frozen=True)
class Passage:
    """One text with the attention its words receive, for the eye.

    words: the pieces of the text in order, words and what stands between them; `is_word` tells which.
    heads: (layer, head) of each map; head -1 is the mean over the layer's heads.
    received: (model, map, word) percent of the attention on content, mean over the selected rows; 0 between words.
    """

    id: str
    label: str | None
    words: tuple[str, ...]
    is_word: tuple[bool, ...]
    marked: tuple[bool, ...]
    heads: tuple[tuple[int, int], ...]
    received: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Base against one or several tuned models on one corpus.

    data: Dataset with dims model, example, layer, head, salience; each variable only its own.
    weights: one row per matrix. tests: one row per estimate, with interval, p and n.
    answers: for each tuned model, for each salience definition, an `Answer`.
    """

    data: xr.Dataset
    weights: pd.DataFrame
    tests: pd.DataFrame
    answers: dict[str, dict[str, Answer]]
    passages: tuple[Passage, ...]
    provenance: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """Names of the models; the first is the base."""
        return [str(name) for name in self.data["model"].values]

    @property
    def salience(self) -> list[str]:
        """Names of the salience definitions; the first is the headline."""
        return [str(name) for name in self.data["salience"].values] if "salience" in self.data.dims else []

    @property
    def answer(self) -> Answer:
        """The answer for the first tuned model under the headline salience."""
        return next(iter(self.answers[self.models[1]].values()))

    def layers(self) -> pd.DataFrame:
        """Weight change per model and layer, pooled as √(ΣΔ²/ΣW²): columns model, layer, relative, entries."""
        backbone = self.weights[self.weights["kind"] == "backbone"]
        squares = backbone.assign(delta=backbone["delta_norm"] ** 2, base=backbone["base_norm"] ** 2)
        sums = squares.groupby(["model", "layer"], sort=True)[["delta", "base", "entries"]].sum().reset_index()
        relative = np.sqrt(sums["delta"] / sums["base"].where(sums["base"] > 0))
        return sums.assign(relative=relative)[["model", "layer", "relative", "entries"]]
