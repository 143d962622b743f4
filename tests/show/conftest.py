"""One synthetic comparison and its written report, shared by the tests of this floor."""

from pathlib import Path

import pytest

from attnlens.analysis.results import Comparison
from attnlens.show.report import report
from tests.show.synthetic import make_comparison


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """One tuned model, two salience definitions, a planted shift in the last layers."""
    return make_comparison()


@pytest.fixture(scope="session")
def written(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `report` wrote for `comparison`."""
    directory = tmp_path_factory.mktemp("written")
    report(comparison, directory)
    return directory
