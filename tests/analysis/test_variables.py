"""Every variable of a comparison says what it is, and stays within the bounds it names, before and after saving."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.results import Comparison, open_comparison
from attnlens.analysis.variables import VARIABLES
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.rows import STATISTICS
from attnlens.text.corpus import Corpus


@pytest.fixture(scope="module")
def whole(base: Checkpoint, tuned: Checkpoint, corpus: Corpus) -> Comparison:
    options = CompareOptions(passages=0, seeds=(replace(tuned, name="seed"),))
    return compare(base, tuned, corpus=corpus, salience=("spans", "textrank"), options=options)


def test_every_variable_says_what_it_is(whole: Comparison):
    assert set(whole.data.data_vars) == set(VARIABLES) - {"virtual_mass"}
    for name, values in whole.data.data_vars.items():
        attributes = values.attrs
        assert {"long_name", "units", "references"} <= set(attributes), name
        assert all(attributes[key] for key in ("long_name", "units", "references")), name
        assert attributes["long_name"] == VARIABLES[str(name)].title
    assert len({variable.title for variable in VARIABLES.values()}) == len(VARIABLES)


def test_units_and_bounds_by_hand(whole: Comparison):
    auroc, focus, entropy, lift = (whole.data[name].attrs for name in ("received_auroc", "focus", "entropy", "lift"))
    assert (auroc["valid_min"], auroc["valid_max"], auroc["units"]) == (0.0, 1.0, "probability")
    assert focus["units"] == "share of content" and "valid_min" not in focus and "valid_max" not in focus
    assert entropy["units"] == "nats" and entropy["valid_min"] == 0.0 and "valid_max" not in entropy  # log n grows
    assert lift["units"] == "times uniform" and "valid_max" not in lift
    assert whole.data["jsd"].attrs["valid_max"] == pytest.approx(np.log(2))
    assert whole.data["entropy_between"].attrs["valid_max"] == pytest.approx(np.log(3))


def test_means_over_rows_keep_the_records_of_the_registry():
    for name in set(VARIABLES) & set(STATISTICS):
        record, variable = STATISTICS[name], VARIABLES[name]
        if record.axes == "key":  # of received attention the dataset holds means over marked keys
            continue
        assert (variable.unit, variable.low, variable.reference) == (record.unit, record.low, record.reference)
        assert variable.high in (record.high(50), np.inf)


def test_numbers_stay_within_the_bounds(whole: Comparison):
    for name, values in whole.data.data_vars.items():
        found = values.values[np.isfinite(values.values)]
        low, high = values.attrs.get("valid_min", -np.inf), values.attrs.get("valid_max", np.inf)
        assert found.size and found.min() >= low - 1e-6 and found.max() <= high + 1e-6, name


def test_saving_keeps_them_all(whole: Comparison, tmp_path: Path):
    opened = open_comparison(whole.save(tmp_path / "saved"))
    xr.testing.assert_identical(opened.data, whole.data)
    netcdf = tmp_path / "plain.nc"
    whole.data.to_netcdf(netcdf)
    with xr.open_dataset(netcdf) as stored:
        xr.testing.assert_identical(stored.load(), whole.data)
