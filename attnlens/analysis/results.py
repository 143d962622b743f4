"""What a comparison is: labelled arrays, tables, the answer, and where they came from; saved and opened whole."""

import csv
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis.word_maps import WordMaps
from attnlens.checkpoints.config import first_line
from attnlens.checkpoints.seal import SUMS, check_seal, seal
from attnlens.core.errors import AttnlensError, OutputExists
from attnlens.core.resampling import document_means
from attnlens.core.weights import WeightChange, pool

STORE = "comparison.zarr"
TABLES = ("weights", "heads", "tests")
RECORD = "comparison.json"
MAPS = "passages.npz"
# Columns of the tables that hold names.
NAMES = ("model", "salience", "family", "matrix", "module", "kind", "stack", "site", "circuit")


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
    remarks: tuple[str, ...] = ()  # what agrees with the verdict, and what does not
    abstract: str = ""  # one sentence for a paper

    def __str__(self) -> str:
        """Sentence and ladder as plain text."""
        ladder = [f"  {rung.number}. {rung.question}: {rung.status}. {rung.detail}" for rung in self.rungs]
        return "\n".join([self.sentence, *ladder, *self.remarks])


@dataclass(frozen=True)
class Passage:
    """One text with the attention its words receive and where they look, for the eye.

    words: the pieces of the text in order, words and what stands between them; `is_word` tells which.
    heads: (layer, head) of each map; head -1 is the mean over the layer's heads.
    received: (model, map, word) percent of the attention on content, mean over the selected rows; 0 between words.
    maps: who looks at whom, by the same heads; None for very long texts, and in comparisons stored without.
    """

    id: str
    label: str | None
    words: tuple[str, ...]
    is_word: tuple[bool, ...]
    marked: tuple[bool, ...]
    heads: tuple[tuple[int, int], ...]
    received: np.ndarray
    maps: WordMaps | None = None


@dataclass(frozen=True, repr=False)
class Comparison:
    """Base against one or several tuned models on one corpus.

    data: Dataset with dims model, example, layer, head, salience; each variable only its own.
    weights: one row per matrix. heads: one row per head and circuit, QK or OV. tests: one row per estimate, with
    interval, p and n.
    answers: for each tuned model, for each salience definition, an `Answer`.
    """

    data: xr.Dataset
    weights: pd.DataFrame
    heads: pd.DataFrame
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

    def __repr__(self) -> str:
        """The answer for each tuned model under the headline salience, as plain text."""
        answers = [f"{model}: {next(iter(self.answers[model].values()))}" for model in self.models[1:]]
        return "\n".join([f"Comparison with {self.models[0]} on {self.data.sizes['example']} texts", *answers])

    def _repr_html_(self) -> str:
        """The first screen for a notebook: verdict, ladder and remarks of each tuned model."""
        parts = [f"<p>Compared with <b>{escape(self.models[0])}</b> on {self.data.sizes['example']} texts.</p>"]
        for model in self.models[1:]:
            answer = next(iter(self.answers[model].values()))
            rungs = [(rung.question, rung.status, rung.detail) for rung in answer.rungs]
            ladder = pd.DataFrame(rungs, columns=["How far the evidence goes", "answer", ""])
            parts.append(f"<h4>{escape(model)}</h4><p>{escape(answer.sentence)}</p>")
            with pd.option_context("display.max_colwidth", None):  # else pandas cuts sentences at 50 characters
                parts.append(ladder.to_html(index=False, border=0, justify="left") if rungs else "")
            parts.append(f"<p>{escape(' '.join(answer.remarks))}</p>" if answer.remarks else "")
        return "".join(parts)

    def layers(self) -> pd.DataFrame:
        """Weight change per model and layer, pooled as √(ΣΔ²/ΣW²): columns model, layer, relative, entries."""
        backbone = self.weights[self.weights["kind"] == "backbone"]
        fields = ["delta_norm", "base_norm", "entries", "identical"]
        rows = []
        for (model, layer), part in backbone.groupby(["model", "layer"], sort=True):
            change = pool(WeightChange(*row) for row in part[fields].itertuples(index=False, name=None))
            rows.append({"model": model, "layer": layer, "relative": change.relative, "entries": change.entries})
        return pd.DataFrame(rows, columns=["model", "layer", "relative", "entries"])

    def states(self) -> pd.DataFrame:
        """How far hidden states moved: one row per tuned model and depth, 0 = what enters the first layer.

        columns model, depth; hidden_change: ‖h′ − h‖ / ‖h‖, mean over documents; n: documents with data; cka: debiased
        linear CKA with the base over the tokens of a batch, 1 = the same geometry; tokens: that CKA saw. Empty where
        models give no states.
        """
        columns = ["model", "depth", "hidden_change", "n", "cka", "tokens"]
        if "cka" not in self.data:
            return pd.DataFrame(columns=columns)
        values = self.data["hidden_change"].transpose("example", "model", "depth").values
        means = document_means(values, self.data["document"].values)
        known = ~np.isnan(means)
        n = known.sum(0)
        change = np.where(known, means, 0.0).sum(0) / np.where(n > 0, n, np.nan)
        cka, tokens = self.data["cka"].values, np.nan_to_num(self.data["cka_tokens"].values).astype(int)
        depth = np.arange(means.shape[2])
        frames = [
            pd.DataFrame(
                {
                    "model": name,
                    "depth": depth,
                    "hidden_change": change[i],
                    "n": n[i],
                    "cka": cka[i],
                    "tokens": tokens[i],
                }
            )
            for i, name in enumerate(self.models)
        ]
        return pd.concat(frames[1:], ignore_index=True)

    def save(self, directory: str | Path) -> Path:
        """Write comparison.zarr (Zarr format 2, consolidated), three CSV tables, one JSON, and passages.npz with the
        attention in the texts kept for the eye: readable without us; and SHA256SUMS, their checksums.

        Each appears whole: written beside, then renamed. An earlier comparison in the folder is replaced; OutputExists
        where files of these names stand there without one.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        taken = [name for name in (STORE, SUMS, *(f"{table}.csv" for table in TABLES)) if (folder / name).exists()]
        if taken and not (folder / RECORD).exists():
            raise OutputExists(f"{folder} holds a {taken[0]} that is no part of a comparison: choose another folder")
        with TemporaryDirectory(dir=folder, prefix=".comparison-") as name:
            building = Path(name)
            self.data.to_zarr(building / STORE, zarr_format=2, consolidated=True)
            for table in TABLES:
                _write_table(getattr(self, table), building / f"{table}.csv")
            record = json.dumps(_plain(self._record()), ensure_ascii=False, indent=1, allow_nan=False)
            (building / RECORD).write_text(record, encoding="utf-8")
            np.savez_compressed(building / MAPS, **_arrays(self.passages))  # pyright: ignore[reportArgumentType]
            seal(building)
            # comparison.json first: it marks the rest as ours.
            for part in sorted(building.iterdir(), key=lambda part: (part.name != RECORD, part.name)):
                _replace(part, folder / part.name)
        return folder

    def _record(self) -> dict[str, Any]:
        """What is neither array nor table, as plain JSON."""
        answers = {
            model: {name: asdict(answer) for name, answer in answers.items()} for model, answers in self.answers.items()
        }
        plain = ("id", "label", "words", "is_word", "marked", "heads")
        passages = [
            {name: getattr(passage, name) for name in plain}
            | {"units": passage.maps and {"outside": passage.maps.outside, "silent": passage.maps.silent}}
            for passage in self.passages
        ]
        return {"answers": answers, "passages": passages, "provenance": self.provenance}


def open_comparison(directory: str | Path) -> Comparison:
    """A comparison written by `Comparison.save` or `attnlens report`; AttnlensError where it is missing or damaged."""
    folder = Path(directory)
    needed = (STORE, *(f"{table}.csv" for table in TABLES), RECORD)
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise AttnlensError(f"{folder} holds no comparison: {missing[0]} is missing of what `attnlens report` writes")
    check_seal(folder, whole=True)
    try:
        return _opened(folder)
    except MemoryError:
        raise
    except Exception as error:  # what xarray, Zarr and pandas raise for a damaged file has no common root below it
        raise AttnlensError(f"{folder} holds a comparison that cannot be read: {first_line(error)}") from error


def _opened(folder: Path) -> Comparison:
    with xr.open_zarr(folder / STORE, consolidated=True, chunks=None) as stored:
        data = stored.load()
    weights, heads, tests = (_table(folder / f"{table}.csv") for table in TABLES)
    record = json.loads((folder / RECORD).read_text())
    answers = {
        model: {name: _answer(answer) for name, answer in answers.items()}
        for model, answers in record["answers"].items()
    }
    arrays = dict(np.load(folder / MAPS, allow_pickle=False)) if (folder / MAPS).exists() else {}
    passages = tuple(_passage(passage, number, arrays) for number, passage in enumerate(record["passages"]))
    return Comparison(data, weights, heads, tests, answers, passages, record["provenance"])


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """As CSV; a carriage return in a name would end a row, unless all names are quoted."""
    names = table[[name for name in NAMES if name in table]].astype(str)
    torn = bool(names.apply(lambda column: column.str.contains("\r", regex=False)).to_numpy().any())
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC if torn else csv.QUOTE_MINIMAL)


def _table(path: Path) -> pd.DataFrame:
    """A table as it was saved: an empty cell is no data among numbers, and the empty name among names."""
    table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(NAMES, str))
    return table.fillna(dict.fromkeys((name for name in NAMES if name in table), ""))


def _plain(value: Any) -> Any:
    """The same value for JSON, which has no NaN: null stands for no data."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _answer(fields: dict[str, Any]) -> Answer:
    headline = {name: math.nan if value is None else value for name, value in fields["headline"].items()}
    plain = {name: fields[name] for name in ("verdict", "sentence", "abstract")}
    rungs = tuple(Rung(**rung) for rung in fields["rungs"])
    layers, remarks = tuple(fields["layers"]), tuple(fields["remarks"])
    return Answer(**plain, layers=layers, headline=headline, rungs=rungs, remarks=remarks)


def _arrays(passages: tuple[Passage, ...]) -> dict[str, np.ndarray]:
    """The numbers of each text, by name and place."""
    arrays = {f"received_{number}": passage.received for number, passage in enumerate(passages)}
    maps = {number: passage.maps for number, passage in enumerate(passages) if passage.maps is not None}
    arrays |= {f"levels_{number}": of_text.levels for number, of_text in maps.items()}
    return arrays | {f"scales_{number}": of_text.scales for number, of_text in maps.items()}


def _passage(fields: dict[str, Any], number: int, arrays: dict[str, np.ndarray]) -> Passage:
    """A text as it was saved; before there were maps, what it receives stood among the words."""
    tuples = {name: tuple(fields[name]) for name in ("words", "is_word", "marked")}
    heads = tuple((layer, head) for layer, head in fields["heads"])
    received = np.array(fields["received"]) if "received" in fields else arrays[f"received_{number}"]
    maps = None
    if units := fields.get("units"):
        outside, silent = tuple(units["outside"]), tuple(units["silent"])
        maps = WordMaps(outside, silent, arrays[f"levels_{number}"], arrays[f"scales_{number}"])
    return Passage(fields["id"], fields["label"], **tuples, heads=heads, received=received, maps=maps)


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another."""
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)
