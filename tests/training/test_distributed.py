"""One run in several processes, or in several batches a step: the same as one process with the larger batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from attnlens.checkpoints.identity import read_record
from attnlens.cli import app
from attnlens.core.errors import TrainingError
from attnlens.text.corpus import Corpus
from attnlens.training.train import TrainingResult, TrainOptions, finetune

Tiny = Callable[[str], Path]
# 30 training rows make 5 steps of 6 an epoch, in one process or in two of 3.
WHOLE = TrainOptions(max_steps=30, batch_size=6, learning_rate=1e-3, patience=30, max_length=16, device="cpu")
DYNAMIC = {
    "full": ("full", {}),
    "lisa": ("lisa", {"k": 1}),
    "weight_change": ("alf", {"budget": 0.5, "denominator": "blocks"}),
    "grad_ratio": ("alf", {"budget": 0.5, "denominator": "blocks", "score": "grad_ratio"}),
}
# Sums of float32 gradients in another order: 30 steps of Adam at 1e-3 magnify the difference of gradients near zero.
TOLERANCE = 1e-4


@pytest.fixture
def calm(tiny: Tiny, tmp_path: Path) -> Path:
    """A tiny BERT without dropout, whose draws depend on how a batch is cut up."""
    folder = tmp_path / "calm"
    folder.mkdir()
    for path in tiny("bert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def alike(one: Path, other: Path) -> None:
    """The same blocks at the same steps, weights within the tolerance, and the same number of rows a step."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=TOLERANCE, msg=name)
    first, second = (read_record(path) for path in (one, other))
    assert first is not None and second is not None
    assert first["options"]["effective_batch_size"] == second["options"]["effective_batch_size"] == 6
    assert first["metrics"]["best_step"] == second["metrics"]["best_step"]
    if first["switching"] is not None:
        chosen = [[(c["step"], c["active"]) for c in r["switching"]["choices"]] for r in (first, second)]
        assert chosen[0] == chosen[1]
        for ours, theirs in zip(first["switching"]["choices"], second["switching"]["choices"], strict=True):
            assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-3)


def trained(kind: str, base: Path, data: Path, output: Path, **settings: Any) -> TrainingResult:
    method, own = DYNAMIC[kind]
    return finetune(base, data, method=method, output=output, options=replace(WHOLE, **own, **settings))


@pytest.mark.parametrize("kind", ["full", "grad_ratio"])
def test_several_batches_a_step_are_one_large_batch(kind: str, calm: Path, data_file: Path, tmp_path: Path):
    trained(kind, calm, data_file, tmp_path / "whole")
    cut = trained(kind, calm, data_file, tmp_path / "cut", batch_size=2, accumulation=3)
    assert (cut.record["options"]["accumulation"], cut.record["options"]["processes"]) == (3, 1)
    alike(tmp_path / "whole", tmp_path / "cut")


WORKER = """
import hashlib, os, sys
from dataclasses import replace
from pathlib import Path
import torch, torch.distributed as dist
from attnlens.training import train
from attnlens.training.loop import train_model
from tests.training.test_distributed import DYNAMIC, trained

torch.set_num_threads(1)
base, data, folder = map(Path, sys.argv[1:])
seen = []

def watched(job, *rest):
    outcome = train_model(job, *rest)
    values = b"".join(value.numpy().tobytes() for _, value in sorted(job.model.state_dict().items()))
    seen.append(hashlib.sha256(values).hexdigest())
    return outcome

train.train_model = watched
for kind in DYNAMIC:
    result = trained(kind, base, data, folder / kind, batch_size=3)
    everywhere = [None] * 2
    dist.all_gather_object(everywhere, [seen[-1], result.metrics, result.record["switching"]])
    assert everywhere[0] == everywhere[1], kind
    assert (folder / kind / "model.safetensors").is_file(), kind
dist.destroy_process_group()
"""


def launched(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Two processes, met over the loopback; what both print comes together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_two_processes_are_one_with_the_doubled_batch(calm: Path, data_file: Path, tmp_path: Path):
    """Weights are equal bit for bit between the two, and within the tolerance to those of one process."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = launched([str(script), str(calm), str(data_file), str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in DYNAMIC:
        trained(kind, calm, data_file, tmp_path / "one" / kind)
        alike(tmp_path / "one" / kind, tmp_path / "two" / kind)
        record = read_record(tmp_path / "two" / kind)
        assert record is not None and record["options"]["processes"] == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} == set(DYNAMIC)


def test_the_command_in_two_processes_speaks_once(tiny: Tiny, data_file: Path, tmp_path: Path):
    words = ["-m", "attnlens", "finetune", str(tiny("bert")), "--data", str(data_file), "--max-steps", "2"]
    words += ["--method", "last_k", "-o", str(tmp_path / "out"), "--json"]
    done = launched(words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["method"] == "last_k"
    assert done.stderr == "", done.stderr


@pytest.mark.parametrize(
    ("name", "variable"), [("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_sharded_parameters_are_refused(
    name: str, variable: str, tiny: Tiny, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(TrainingError, match=rf"^{name} cuts parameters into pieces .* \(torchrun"):
        finetune(tiny("bert"), corpus, method="alf", output=tmp_path / "out", options=WHOLE)
    assert list(tmp_path.iterdir()) == []


def test_recomputed_activations_change_nothing(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """Bit for bit, with dropout, behind frozen embeddings."""
    for checkpointing in (False, True):
        options = replace(WHOLE, max_steps=4, checkpointing=checkpointing)
        finetune(tiny("bert"), corpus, method="last_k", output=tmp_path / str(checkpointing), options=options)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("False", "True"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_bfloat16_computes_but_does_not_store(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    for dtype in (None, "bfloat16"):
        options = replace(WHOLE, max_steps=4, dtype=dtype)
        result = finetune(tiny("bert"), corpus, output=tmp_path / str(dtype), options=options)
        assert result.record["options"]["dtype"] == dtype
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("None", "bfloat16"))
    assert {value.dtype for value in b.values()} == {torch.float32}
    distance = max((a[name] - b[name]).abs().max().item() for name in a)
    assert 0 < distance < 1e-2  # four steps of at most 1e-3 each
    with pytest.raises(TrainingError, match=r"dtype must be float32 or bfloat16; got 'float16'"):
        TrainOptions(dtype="float16")
    words = ["finetune", str(tiny("bert")), "--data", "x.jsonl", "-o", str(tmp_path / "c"), "--dtype", "half"]
    assert isinstance(CliRunner().invoke(app, words).exception, TrainingError)
