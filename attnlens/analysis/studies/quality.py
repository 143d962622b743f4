"""Quality of the arms on test texts: over seeds and documents at once (METRICS 6.2, levels B and C), and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, rankdata

from attnlens.analysis.studies.cells import Cell, Plan
from attnlens.analysis.studies.work import TEXTS
from attnlens.core.crossed import Crossed, crossed_t
from attnlens.core.errors import AttnlensError
from attnlens.core.multiplicity import holm
from attnlens.core.resampling import document_means

# What the interval of a difference to the reference says, given the margin.
BETTER, NOT_INFERIOR, INFERIOR, OPEN = "better", "not inferior", "inferior", "open"
ANY = (-np.inf, np.inf)


@dataclass(frozen=True)
class Values:
    """Test quality by arm and seed: (D,) a mean over the texts of each document. higher: whether more is better."""

    of: dict[str, dict[int, np.ndarray]]
    unit: str
    higher: bool


def test_values(plan: Plan, rows: dict[Cell, dict[str, Any]]) -> Values:
    """What the cells of one model and data set reached on every test document."""
    found: dict[str, dict[int, np.ndarray]] = {}
    unit, higher = "", True
    for cell, row in rows.items():
        if not row["test"]:
            continue
        unit, higher = row["test"]["unit"], row["test"]["higher"]
        found.setdefault(cell.arm, {})[cell.seed] = of_documents(plan, cell)
    return Values(found, unit, higher)


def of_documents(plan: Plan, cell: Cell) -> np.ndarray:
    """What a cell reached on every test document (D,), a mean over its texts."""
    path = plan.folder / cell.path / TEXTS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return document_means(arrays["values"], arrays["documents"])
    except Exception as error:  # NumPy, zipfile and zlib have a dozen for bytes that make no sense
        raise AttnlensError(
            f"{path} is missing or damaged: remove {path.parent}, and the same command makes it again"
        ) from error


def arms_quality(values: Values, order: Sequence[str], reference: str, margin: float) -> pd.DataFrame:
    """One row an arm: quality over seeds and documents, and its difference to the reference over the seeds of both.

    columns arm, seeds, documents, unit, higher, quality, low, high, difference, difference_low, difference_high, p,
    verdict. verdict: not inferior where the whole interval of the difference is better than −margin, better where it is
    better than 0, inferior where it is worse than −margin, else open; empty for the reference. A test of
    non-inferiority at .025, the margin being fixed before.
    """
    rows = []
    for arm in order:
        runs = values.of.get(arm, {})
        mean = crossed_t(np.stack(list(runs.values()))) if runs else None
        row = {"arm": arm, "seeds": len(runs), "unit": values.unit, "higher": values.higher}
        # No share lies outside 0 and 1, and no two lie farther apart than 1.
        share = values.unit == "accuracy"
        row |= _numbers(mean, ("quality", "low", "high"), (0.0, 1.0) if share else ANY)
        row["documents"] = 0 if mean is None else mean.n_documents
        against = paired(values.of, arm, reference) if arm != reference else None
        row |= _numbers(against, ("difference", "difference_low", "difference_high"), (-1.0, 1.0) if share else ANY)
        row |= (
            {"p": np.nan, "paired_seeds": 0} if against is None else {"p": against.p, "paired_seeds": against.n_seeds}
        )
        rows.append(row | {"verdict": "" if against is None else verdict(against, margin, higher=values.higher)})
    return pd.DataFrame(rows)


def verdict(difference: Crossed, margin: float, *, higher: bool) -> str:
    """What an interval of a difference says against the margin; open without an interval.

    Hand example: margin .02, accuracy: −.015 … +.01 is not inferior, −.05 … −.03 inferior, −.03 … +.01 open.
    """
    worst, best = (difference.low, difference.high) if higher else (-difference.high, -difference.low)
    if np.isnan(worst):
        return OPEN
    if worst > 0:
        return BETTER
    if worst > -margin:
        return NOT_INFERIOR
    return INFERIOR if best < -margin else OPEN


def paired(values: dict[str, dict[int, np.ndarray]], arm: str, other: str) -> Crossed | None:
    """The difference of two arms over the seeds that both have; None without such a seed."""
    seeds = [seed for seed in values.get(arm, {}) if seed in values.get(other, {})]
    return crossed_t(np.stack([values[arm][seed] - values[other][seed] for seed in seeds])) if seeds else None


def pairs_quality(values: Values, totals: dict[str, dict[int, np.ndarray]], order: Sequence[str]) -> pd.DataFrame:
    """One row for each two arms and measure: the first less the second, paired by seed.

    columns measure (quality, or focus: Σ over layers of the change of focus), arm, other, estimate, low, high, p,
    p_adjusted (Holm, over all pairs of a measure), n_seeds, n_documents.
    """
    tables = []
    share = (-1.0, 1.0) if values.unit == "accuracy" else ANY
    for measure, of, limits in (("quality", values.of, share), ("focus", totals, ANY)):
        rows = []
        for arm, other in combinations([name for name in order if name in of], 2):
            if (found := paired(of, arm, other)) is not None:
                row = {"measure": measure, "arm": arm, "other": other, "p": found.p, "n_seeds": found.n_seeds}
                numbers = _numbers(found, ("estimate", "low", "high"), limits)
                rows.append(row | numbers | {"n_documents": found.n_documents})
        table = pd.DataFrame(rows)
        tables.append(table.assign(p_adjusted=holm(table["p"].to_numpy(float))) if rows else table)
    return pd.concat(tables, ignore_index=True)


def ranks(values: Values, order: Sequence[str]) -> pd.DataFrame:
    """One row an arm and seed: its rank among the arms, 1 the best, of the seeds that all arms have.

    columns arm, seed, rank, agreement: Kendall's W over these seeds, 1 = the same order in each, 0 = no order at all;
    NaN below two seeds or three arms, and where all arms are equal in all seeds.
    """
    arms = [name for name in order if name in values.of]
    seeds = [seed for seed in values.of[arms[0]] if all(seed in values.of[arm] for arm in arms)] if arms else []
    if not seeds:
        return pd.DataFrame(columns=["arm", "seed", "rank", "agreement"])
    scores = np.array([[np.nanmean(values.of[arm][seed]) for seed in seeds] for arm in arms])
    found = np.stack([rankdata(-column if values.higher else column) for column in scores.T], axis=1)
    agreement = np.nan
    if len(seeds) > 1 and len(arms) > 2 and np.ptp(found) > 0:
        agreement = float(friedmanchisquare(*found).statistic) / (len(seeds) * (len(arms) - 1))
    rows = [(arm, seed, found[i, j]) for i, arm in enumerate(arms) for j, seed in enumerate(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "rank"]).assign(agreement=agreement)


def _numbers(found: Crossed | None, names: tuple[str, str, str], limits: tuple[float, float]) -> dict[str, float]:
    """Estimate, low and high by these names, the ends cut at what is possible."""
    if found is None:
        return dict.fromkeys(names, np.nan)
    ends = np.clip((found.low, found.high), *limits).tolist()
    return dict(zip(names, (found.estimate, *ends), strict=True))
