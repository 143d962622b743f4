"""Quality over seeds and documents: verdicts, pairs and ranks, by hand and against their definitions."""

import math
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attnlens.analysis.studies import quality
from attnlens.analysis.studies.cells import Cell
from attnlens.analysis.studies.quality import (
    BETTER,
    INFERIOR,
    NOT_INFERIOR,
    OPEN,
    Values,
    arms_quality,
    paired,
    pairs_quality,
    ranks,
    verdict,
)
from attnlens.analysis.studies.work import TEXTS
from attnlens.core.crossed import Crossed, crossed_t

NAN = math.nan


def interval(low: float, high: float) -> Crossed:
    return Crossed((low + high) / 2, low, high, 0.5, 3.0, 0.0, 0.0, 0.0, 6, 20, 0, 0.95)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.03, BETTER),
        (0.0, 0.03, NOT_INFERIOR),
        (-0.015, 0.01, NOT_INFERIOR),
        (-0.015, -0.001, NOT_INFERIOR),  # surely worse, and surely by less than the margin
        (-0.02, 0.01, OPEN),  # the margin itself is not better than the margin
        (-0.03, 0.01, OPEN),
        (-0.03, -0.02, OPEN),
        (-0.05, -0.03, INFERIOR),
        (NAN, NAN, OPEN),
    ],
)
def test_verdicts_against_a_margin_of_two_points(low: float, high: float, expected: str):
    assert verdict(interval(low, high), 0.02, higher=True) == expected
    assert verdict(interval(-high, -low), 0.02, higher=False) == expected  # of a loss, less is better


def values(*, seeds: int = 4, documents: int = 9, higher: bool = True) -> Values:
    """Three arms, of which the second lacks the first seed and the third the last."""
    rng = np.random.default_rng(5)
    of = {
        arm: {seed: 0.8 - 0.1 * place + 0.05 * rng.standard_normal(documents) for seed in range(seeds)}
        for place, arm in enumerate(("full", "lora", "head"))
    }
    del of["lora"][0], of["head"][seeds - 1]
    return Values(of, "accuracy" if higher else "loss", higher)


def test_a_difference_takes_the_seeds_that_both_have():
    some = values()
    found = paired(some.of, "lora", "head")
    expected = crossed_t(np.stack([some.of["lora"][seed] - some.of["head"][seed] for seed in (1, 2)]))
    assert found == expected and found is not None and found.n_seeds == 2
    assert found.estimate == pytest.approx(np.mean([some.of["lora"][s] - some.of["head"][s] for s in (1, 2)]))
    assert paired(some.of, "lora", "nobody") is None
    lonely = {"a": {0: np.ones(3)}, "b": {1: np.ones(3)}}
    assert paired(lonely, "a", "b") is None


def test_the_order_in_which_seeds_were_finished_does_not_matter():
    some = values()
    turned = {arm: dict(reversed(of.items())) for arm, of in some.of.items()}
    one, other = paired(some.of, "full", "lora"), paired(turned, "full", "lora")
    assert one is not None and other is not None
    assert vars(one) == pytest.approx(vars(other), rel=1e-12)


def by_arm(table: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    return {row["arm"]: row for row in table.to_dict("records")}


def test_one_row_an_arm_with_the_interval_of_crossed_t():
    some = values()
    table = by_arm(arms_quality(some, ["full", "lora", "head"], "full", 0.02))
    for arm, of in some.of.items():
        expected, row = crossed_t(np.stack(list(of.values()))), table[arm]
        assert (row["quality"], row["low"], row["high"]) == (expected.estimate, expected.low, expected.high)
        assert (row["seeds"], row["documents"], row["unit"]) == (len(of), 9, "accuracy") and row["higher"]
    against = paired(some.of, "lora", "full")
    assert against is not None
    row = table["lora"]
    assert (row["difference"], row["difference_low"], row["difference_high"], row["p"], row["paired_seeds"]) == (
        against.estimate,
        against.low,
        against.high,
        against.p,
        3,
    )
    assert row["verdict"] == verdict(against, 0.02, higher=True)
    own = table["full"]
    assert own["verdict"] == "" and math.isnan(own["difference"]) and own["paired_seeds"] == 0


def test_one_seed_gives_a_mean_without_interval_and_no_verdict():
    some = values(seeds=2)
    table = by_arm(arms_quality(some, ["full", "lora", "head", "given"], "full", 0.02))
    row = table["lora"]
    assert row["quality"] == pytest.approx(some.of["lora"][1].mean()) and math.isnan(row["low"])
    assert row["verdict"] == OPEN and row["paired_seeds"] == 1
    empty = table["given"]  # an arm that nobody could judge
    assert empty["seeds"] == empty["documents"] == 0 and math.isnan(empty["quality"]) and empty["verdict"] == ""


def test_pairs_are_corrected_within_their_measure():
    some = values(seeds=6)
    totals = {arm: {seed: 0.1 * row for seed, row in of.items()} for arm, of in values(seeds=5).of.items()}
    table = pairs_quality(some, totals, ["full", "lora", "head"])
    for measure, of in (("quality", some.of), ("focus", totals)):
        rows = table[table["measure"] == measure]
        assert [tuple(row) for row in rows[["arm", "other"]].values] == list(combinations(of, 2))
        p = []
        for _, row in rows.iterrows():
            expected = paired(of, row["arm"], row["other"])
            assert expected is not None
            assert (row["estimate"], row["low"], row["high"], row["p"]) == (
                expected.estimate,
                expected.low,
                expected.high,
                expected.p,
            )
            assert (row["n_seeds"], row["n_documents"]) == (expected.n_seeds, 9)
            p.append(expected.p)
        adjusted = rows["p_adjusted"].to_numpy()
        smallest, middle, largest = np.argsort(p)
        by_hand = [3 * p[smallest], max(3 * p[smallest], 2 * p[middle])]
        by_hand.append(max(by_hand[1], p[largest]))
        np.testing.assert_allclose(adjusted[[smallest, middle, largest]], np.minimum(by_hand, 1), rtol=1e-12)


def test_one_arm_has_no_pairs():
    some = values()
    assert pairs_quality(some, {}, ["full"]).empty


def flat(of: dict[str, list[float]], *, higher: bool = True) -> Values:
    """A quality a seed, the same on two documents."""
    return Values({arm: {s: np.full(2, q) for s, q in enumerate(row)} for arm, row in of.items()}, "accuracy", higher)


def places(table: pd.DataFrame) -> dict[str, list[float]]:
    return {str(arm): rows["rank"].tolist() for arm, rows in table.groupby("arm", sort=False)}


def test_ranks_in_perfect_agreement():
    some = flat({"a": [0.9, 0.8], "b": [0.5, 0.4], "c": [0.7, 0.6]})
    table = ranks(some, ["a", "b", "c"])
    assert places(table) == {"a": [1, 1], "b": [3, 3], "c": [2, 2]}
    assert table["agreement"].unique() == pytest.approx([1])
    losses = ranks(Values(some.of, "loss", higher=False), ["a", "b", "c"])
    assert places(losses) == {"a": [3, 3], "b": [1, 1], "c": [2, 2]}


def test_agreement_by_hand():
    """Rank sums 4, 6, 8 around 6: S = 8, W = 12 · 8 / (3² (3³ − 3)) = 96 / 216 = 4/9."""
    some = flat({"a": [0.9, 0.9, 0.7], "b": [0.8, 0.7, 0.8], "c": [0.7, 0.8, 0.6]})
    table = ranks(some, ["a", "b", "c"])
    assert places(table) == {"a": [1, 1, 2], "b": [2, 3, 1], "c": [3, 2, 3]}
    assert table["agreement"].iloc[0] == pytest.approx(4 / 9)
    cycle = flat({"a": [0.9, 0.8, 0.7], "b": [0.8, 0.7, 0.9], "c": [0.7, 0.9, 0.8]})
    assert ranks(cycle, ["a", "b", "c"])["agreement"].iloc[0] == pytest.approx(0)


def test_ties_share_their_place():
    """One tie of two in each of two seeds: W = 12 S / (m² (n³ − n) − m Σ (t³ − t)) = 12 · 6 / (96 − 24) = 1."""
    some = flat({"a": [0.9, 0.9], "b": [0.7, 0.7], "c": [0.7, 0.7]})
    table = ranks(some, ["a", "b", "c"])
    assert places(table) == {"a": [1, 1], "b": [2.5, 2.5], "c": [2.5, 2.5]}
    assert table["agreement"].iloc[0] == pytest.approx(1)
    equal = ranks(flat({"a": [0.9, 0.9], "b": [0.9, 0.9], "c": [0.9, 0.9]}), ["a", "b", "c"])
    assert equal["rank"].unique() == pytest.approx([2]) and equal["agreement"].isna().all()


def test_ranks_take_the_seeds_that_all_arms_have():
    table = ranks(values(), ["full", "lora", "head"])
    assert sorted(table["seed"].unique()) == [1, 2]
    single = ranks(flat({"a": [0.9], "b": [0.5], "c": [0.7]}), ["a", "b", "c"])
    assert places(single) == {"a": [1], "b": [3], "c": [2]} and single["agreement"].isna().all()
    two = ranks(flat({"a": [0.9, 0.8], "b": [0.5, 0.4]}), ["a", "b"])
    assert places(two) == {"a": [1, 1], "b": [2, 2]} and two["agreement"].isna().all()
    assert ranks(Values({}, "", higher=True), ["a"]).empty
    apart = Values({"a": {0: np.ones(2)}, "b": {1: np.ones(2)}}, "accuracy", higher=True)
    assert ranks(apart, ["a", "b"]).empty


def test_test_values_are_means_over_the_texts_of_a_document(tmp_path: Path):
    cell = Cell("m", "d", "full", None, 3)
    (tmp_path / cell.path).mkdir(parents=True)
    np.savez(tmp_path / cell.path / TEXTS, values=[1.0, 0.0, 1.0, NAN], documents=["b", "a", "b", "a"])
    plan: Any = SimpleNamespace(folder=tmp_path)
    given = Cell("m", "d", "given", None, 3)
    rows: dict[Cell, dict[str, Any]] = {cell: {"test": {"unit": "loss", "higher": False}}, given: {"test": None}}
    read = quality.test_values(plan, rows)
    assert (read.unit, read.higher, list(read.of)) == ("loss", False, ["full"])
    np.testing.assert_array_equal(read.of["full"][3], [0.0, 1.0])
