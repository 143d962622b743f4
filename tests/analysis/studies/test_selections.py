"""What methods chose, held against each other: Jaccards by hand."""

from typing import Any

import numpy as np
import pytest

from attnlens.analysis.studies.cells import Cell
from attnlens.analysis.studies.selections import COLUMNS, selections


def row(active: list[int] | None, *, real: float | None = None, twin: bool = False) -> dict[str, Any]:
    """A cell's row: which of six blocks it chose, and how far its twin's choice is the same."""
    controls = {"last_k": 1 / 3, "first_k": 0.0, "rms": 1.0}
    overlap = None if active is None else {"active": active, "jaccard": controls, "chance": 0.2}
    beside = {"selection_overlap": None if real is None else {"real": real}} if twin else None
    return {"record": {"selection_overlap": overlap}, "twin": beside}


def cell(arm: str, seed: int, rate: float = 1e-3) -> Cell:
    return Cell("m", "d", arm, rate, seed)


def test_by_hand():
    """{0, 1}, {1, 2}, {0, 1}: the first shares a third with the second and all with the third."""
    table = selections(
        {
            cell("alf", 0): row([0, 1], real=0.5, twin=True),
            cell("full", 0): row(None, twin=True),
            cell("alf", 1): row([1, 2], twin=True),
            cell("lisa", 0): row([4, 5]),
            cell("alf", 2): row([0, 1]),
        }
    )
    assert list(table.columns) == COLUMNS
    assert table["arm"].tolist() == ["alf", "alf", "lisa", "alf"] and table["seed"].tolist() == [0, 1, 0, 2]
    assert table["blocks"].tolist() == ["1 2", "2 3", "5 6", "1 2"]
    assert table["other_seeds"].tolist() == pytest.approx([(1 / 3 + 1) / 2, 1 / 3, np.nan, 2 / 3], nan_ok=True)
    assert table["shuffled"].tolist() == pytest.approx([0.5, np.nan, np.nan, np.nan], nan_ok=True)
    assert table["last_k"].tolist() == pytest.approx([1 / 3] * 4) and (table["first_k"] == 0).all()
    assert (table["rms"] == 1).all() and (table["chance"] == 0.2).all()


def test_nothing_was_chosen():
    table = selections({cell("full", 0): row(None), cell("given", 0): {"record": {}, "twin": None}})
    assert table.empty and list(table.columns) == COLUMNS
