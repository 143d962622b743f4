"""What each model is for: answer, shuffled twin or further seed, by its training record or the caller's word."""

from types import SimpleNamespace
from typing import Any

import pytest

from attnlens.analysis.provenance import about_seeds
from attnlens.analysis.roles import Roles, held_out_otherwise, is_null, roles_of
from attnlens.core.errors import IncompatibleCheckpoints


def record(seed: int = 0, *, null: bool = False, rows: str = "r", **order: Any) -> dict[str, Any]:
    order = {"method": "alf", "learning_rate": 1e-4, "seed": seed, "rows": rows} | order
    data = {"train": {"sha256": "t"}, "heldout": {"sha256": "h", "rows": rows}}
    return {
        "null_twin": null,
        "method": order["method"],
        "seed": seed,
        "base": {"sha256": "b"},
        "data": data,
        "order": order,
    }


def found(records: dict[str, Any], nulls: tuple[str, ...] = (), seeds: tuple[str, ...] = ()) -> Roles:
    names = ["base", *records]
    models = [SimpleNamespace(provenance={"training": made}) for made in (None, *records.values())]
    return roles_of(models, names, nulls, seeds)  # pyright: ignore[reportArgumentType]


def cast(records: dict[str, Any], roles: Roles) -> Any:
    given = [SimpleNamespace(provenance={"training": made}) for made in (None, *records.values())]
    return SimpleNamespace(names=["base", *records], given=given, roles=roles)


def test_a_twin_is_known_by_its_record():
    records = {"a": record(), "b": record(method="full"), "c": record(null=True)}
    assert found(records) == Roles(("a", "b"), {"a": "c"}, numbers={"a": 0, "b": 0})


def test_only_a_record_that_says_so_is_a_twin_s():
    assert is_null({"null_twin": True}) and not is_null({"null_twin": "yes"}) and not is_null({}) and not is_null(None)


def test_a_twin_of_another_run_is_nobodys_null():
    assert found({"a": record(), "c": record(1, null=True)}) == Roles(("a",), numbers={"a": 0})
    with pytest.raises(IncompatibleCheckpoints, match="c was given as a shuffled twin, but of another run"):
        found({"a": record(), "c": record(1, null=True)}, nulls=("c",))


def test_without_records_the_callers_word_counts():
    assert found({"a": None, "n": None, "s": None}, ("n",), ("s",)) == Roles(("a",), {"a": "n"}, {"a": ("s",)})


def test_twins_alone_are_answers():
    assert found({"n": record(null=True)}) == Roles(("n",), numbers={"n": 0})


def test_seeds_go_to_the_training_that_they_repeat():
    records = {"a": record(), "b": record(method="full"), "s": record(1), "t": record(1, method="full"), "u": record(2)}
    assert found(records, seeds=("s", "t", "u")).seeds == {"a": ("s", "u"), "b": ("t",)}


def test_seeds_of_another_training_are_refused_with_the_difference():
    with pytest.raises(IncompatibleCheckpoints, match="s was given as another seed of a, but its learning_rate is 0"):
        found({"a": record(), "s": record(1, learning_rate=0.5)}, seeds=("s",))


def test_one_run_twice_is_no_second_seed():
    with pytest.raises(IncompatibleCheckpoints, match="s and a were both trained with seed 0"):
        found({"a": record(), "s": record(0)}, seeds=("s",))
    with pytest.raises(IncompatibleCheckpoints, match="t and s were both trained with seed 1"):
        found({"a": record(), "s": record(1), "t": record(1)}, seeds=("s", "t"))


def test_rows_that_one_seed_learned_and_another_held_out_are_seen():
    assert held_out_otherwise(record(), record(1, rows="other"))
    assert not held_out_otherwise(record(), record(1)) and not held_out_otherwise(record(), None)


def test_trainings_on_other_seeds_are_not_paired_and_the_report_says_so():
    records = {"a": record(), "b": record(method="full"), "s": record(1), "t": record(2, method="full")}
    roles = found(records, seeds=("s", "t"))
    assert roles.pairs("b") == []
    told = about_seeds(cast(records, roles))
    assert told == [
        "b (seeds 0, 2) and a (seeds 0, 1) are not paired by seed: the two trainings cannot be held against each "
        "other. Give both the same seeds."
    ]
    paired = found(records | {"t": record(1, method="full")}, seeds=("s", "t"))
    assert paired.pairs("b") == [("b", "a"), ("t", "s")] and about_seeds(cast(records, paired)) == []


def test_a_seed_that_held_out_other_rows_is_told():
    records = {"a": record(), "s": record(1, rows="other")}
    told = about_seeds(cast(records, found(records, seeds=("s",))))
    assert len(told) == 1 and told[0].startswith("s held out other rows than a did")
