"""Focus over the seeds of every arm: does the training move attention, more than its null does, than its rivals do?"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from attnlens.analysis import evidence
from attnlens.analysis.inference import layer_tests, over_heads, seed_tests, single_test
from attnlens.analysis.ladder import LEAST_SEEDS, Case
from attnlens.analysis.results import Answer, Comparison, Rung, open_comparison
from attnlens.analysis.studies.cells import Cell, Plan
from attnlens.analysis.studies.work import COMPARISON, TWIN
from attnlens.core.resampling import document_means

SEED = 0  # of resampling
# What would answer a rung that is open, in the words of a study file.
MISSING = {
    3: "twin = true in the [[arms]] of this arm",
    4: "seeds = [0, 1, 2, 3, 4, 5], or more, in the study file",
    5: "knockout = true in [measure] of the study file",
}


@dataclass(frozen=True)
class Focus:
    """profiles: change of focus by layer and family, one row an arm and layer, as shares of attention on content.

    totals: by arm and seed, (D,): Σ over layers of the change, mean over the texts of a document. answers: by arm.
    Empty where no word was marked.
    """

    profiles: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["arm", "family", "layer", "estimate", "low", "high"])
    )
    totals: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)


def told(profiles: pd.DataFrame) -> pd.DataFrame:
    """The rows that speak of each arm: the family seeds where there are six at least, else profile, the mean over them.

    An interval over two seeds is too wide to be looked at, and over one there is none.
    """
    keys = [name for name in ("model", "data", "arm") if name in profiles]
    arms = pd.MultiIndex.from_frame(profiles[keys])
    enough = ((profiles["family"] == "seeds") & (profiles["n_seeds"] >= LEAST_SEEDS)).to_numpy()
    return profiles[enough | ((profiles["family"] == "profile") & ~arms.isin(arms[enough]))]


@dataclass(frozen=True)
class _Runs:
    """The comparisons of one arm by seed."""

    arm: str
    of: dict[int, Comparison]
    salience: str

    @property
    def documents(self) -> np.ndarray:
        """Of each text."""
        return next(iter(self.of.values())).data["document"].values

    def focus(self, seed: int, model: str) -> xr.DataArray:
        """Of a model by name: (example, layer, head)."""
        return self.of[seed].data["focus"].sel(salience=self.salience, model=model)

    def shift(self, seed: int) -> xr.DataArray:
        """Tuned less base."""
        return self.focus(seed, self.arm) - self.focus(seed, self.of[seed].models[0])


def focus_of(plan: Plan, rows: dict[Cell, dict[str, Any]]) -> Focus:
    """The focus of all arms of one model and data set, under the headline definition."""
    comparisons: dict[str, dict[int, Comparison]] = {}
    for cell in rows:
        comparisons.setdefault(cell.arm, {})[cell.seed] = open_comparison(plan.folder / cell.path / COMPARISON)
    first = next(iter(next(iter(comparisons.values())).values()))
    if not first.salience:
        return Focus()
    arms = {arm: _Runs(arm, of, first.salience[0]) for arm, of in comparisons.items()}
    rival = arms.get(plan.file.held_against)
    profiles, totals, answers = [], {}, {}
    for arm, runs in arms.items():
        tests = _tests(runs, rival, plan)
        profiles.append(tests[tests["layer"] >= 0].assign(arm=arm))
        answers[arm] = _answer(runs, tests, plan)
        totals[arm] = {seed: document_means(over_heads(runs.shift(seed)).sum(1), runs.documents) for seed in runs.of}
    return Focus(pd.concat(profiles, ignore_index=True), totals, answers)


def _tests(runs: _Runs, rival: _Runs | None, plan: Plan) -> pd.DataFrame:
    """Families: profile (the mean over the seeds at hand, level A), seeds (level B), beyond null and against rival.

    The last two are paired by seed (level C); under six twins "beyond null" is their mean over seeds, as profile. Where
    they were measured, also causal focus and reliance.
    """
    shifts = {seed: runs.shift(seed) for seed in runs.of}
    mean = np.mean([over_heads(shift) for shift in shifts.values()], axis=0)
    found = [layer_tests("profile", mean, runs.documents, sesoi=plan.file.measure.sesoi, seed=SEED)]
    found.append(seed_tests("seeds", list(shifts.values()), runs.documents, seed=SEED))
    twins = [seed for seed, comparison in runs.of.items() if TWIN in comparison.models]
    if twins:
        differences = [runs.focus(seed, runs.arm) - runs.focus(seed, TWIN) for seed in twins]
        if len(twins) >= LEAST_SEEDS:
            found.append(seed_tests("beyond null", differences, runs.documents, seed=SEED))
        else:
            mean = np.mean([over_heads(difference) for difference in differences], axis=0)
            beyond = layer_tests("beyond null", mean, runs.documents, sesoi=np.nan, seed=SEED)
            found.append(beyond.assign(n_seeds=len(twins)))
    if rival is not None and rival.arm != runs.arm and (paired := [seed for seed in shifts if seed in rival.of]):
        differences = [shifts[seed] - rival.shift(seed) for seed in paired]
        found.append(seed_tests("against rival", differences, runs.documents, seed=SEED))
    if all("reliance" in comparison.data for comparison in runs.of.values()):
        for family, name in (("causal focus", "causal_focus"), ("reliance", "reliance")):
            values = [comparison.data[name].sel(model=runs.arm).values for comparison in runs.of.values()]
            found.append(single_test(family, np.mean(values, axis=0), runs.documents, seed=SEED))
    return pd.concat(found, ignore_index=True)


def _answer(runs: _Runs, tests: pd.DataFrame, plan: Plan) -> Answer:
    """The answer for the mean over the seeds at hand, with the ladder of the whole study."""
    comparisons = list(runs.of.values())
    first = comparisons[0]
    names = [first.models[0], runs.arm]
    kept = [name for name in ("focus", "share", "log_odds", "entropy", "mass", "content_mass") if name in first.data]
    data = sum(comparison.data[kept].sel(model=names) for comparison in comparisons) / len(comparisons)
    assert isinstance(data, xr.Dataset)
    facts = first.provenance["salience"][runs.salience]
    twins = sum(TWIN in comparison.models for comparison in comparisons)
    case = Case(
        runs.arm,
        runs.salience,
        plan.file.measure.sesoi,
        regression=facts["control"] == "regression",
        same_weights=all(_same_weights(comparison, runs) for comparison in comparisons),
        null=f"the same training on shuffled labels, over {twins} paired seeds" if twins else "",
        runs=len(comparisons),
        rival=plan.file.held_against,
        knockout=first.data["reliance"].attrs if "reliance" in first.data else None,
    )
    answer = evidence.decide(tests, data.assign_coords(document=first.data["document"]), case)
    remarks = evidence.against_rival(tests, case, int(answer.headline["layer"]) - 1) if answer.headline else ()
    several = f" Mean over {len(comparisons)} seeds." if len(comparisons) > 1 else ""
    rungs = _in_words_of_a_study(answer.rungs)
    return replace(answer, sentence=f"{answer.sentence}{several}", rungs=rungs, remarks=remarks)


def _same_weights(comparison: Comparison, runs: _Runs) -> bool:
    """Whether no weight of the backbone differs, as the comparison found it; then there is nothing to train again."""
    rungs = comparison.answers[runs.arm][runs.salience].rungs
    return any(rung.number == 3 and rung.status == "not applicable" for rung in rungs)


def _in_words_of_a_study(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    return tuple(replace(rung, command=MISSING.get(rung.number, "") if rung.command else "") for rung in rungs)
