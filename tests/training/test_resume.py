"""Interrupted runs: what is kept, that a resumed run ends as an undisturbed one, and what is refused."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from attnlens.checkpoints.identity import read_record
from attnlens.core.errors import OutputExists, TrainingError
from attnlens.text.corpus import Corpus, Example
from attnlens.training.intermediate import QuietTrainer
from attnlens.training.train import TrainingResult, TrainOptions, finetune
from attnlens.training.twin import twin_path
from tests.training.conftest import rows

Tiny = Callable[[str], Path]
# 30 training rows in batches of 7 are 5 steps an epoch; evaluations come every 3 steps, so within epochs and between.
QUICK = TrainOptions(max_steps=24, batch_size=7, learning_rate=1e-2, patience=30, max_length=16, device="cpu")
ALF = {"budget": 0.5, "denominator": "blocks", "max_steps": 66}  # probes: steps 1-10 and 43-50, runs from 11 and 51
TIMES = {"seconds", "cost"}


def stopping(*steps: int, by: Any = KeyboardInterrupt) -> Callable[[int, int, dict[str, float]], None]:
    """A progress function that interrupts once at each of these steps, as soon as the step was made."""
    left = list(steps)

    def progress(step: int, total: int, logs: dict[str, float]) -> None:
        if left and step == left[0] and "loss" in logs:
            left.pop(0)
            raise by

    return progress


def same(first: TrainingResult, second: TrainingResult) -> None:
    """Weights bit for bit, and records but for times."""
    a, b = (load_file(result.path / "model.safetensors") for result in (first, second))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert first.metrics == second.metrics
    for name in {*first.record, *second.record} - TIMES:
        assert first.record[name] == second.record[name], name


@pytest.fixture(scope="module")
def calm(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The undisturbed run of `full` on BERT."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    examples = tuple(Example(row["text"], row["id"], row["document"], row["label"]) for row in rows())
    corpus = Corpus(examples, "task.jsonl", "0" * 64, True)
    result = finetune(tiny("bert"), corpus, output=tmp_path_factory.mktemp("calm") / "calm", options=QUICK)
    torch.set_num_threads(threads)
    return result


@pytest.mark.parametrize(
    ("method", "architecture", "settings", "stops"),
    [
        ("full", "bert", {}, (14, 16)),  # within an epoch; just after the end of one
        ("last_k", "gpt2", {"k": 2, "max_steps": 8}, (7,)),
        ("full", "llama text", {"accumulation": 2, "max_steps": 9}, (8,)),
        ("lisa", "bert", {"max_steps": 45}, (11, 44)),
        ("alf", "bert", ALF, (13, 45)),
        ("alf", "llama text", {**ALF, "score": "grad_ratio", "max_steps": 40}, (20, 23)),
    ],
)
def test_a_resumed_run_ends_as_an_undisturbed_one(
    method: str,
    architecture: str,
    settings: dict[str, Any],
    stops: tuple[int, ...],
    request: pytest.FixtureRequest,
    corpus: Corpus,
    tmp_path: Path,
):
    name, _, text = architecture.partition(" ")
    if text:
        corpus = replace(corpus, examples=tuple(replace(example, label=None) for example in corpus))
    base = request.getfixturevalue("tiny_lm" if text else "tiny")(name)
    options = replace(QUICK, **settings)
    calm = finetune(base, corpus, method=method, output=tmp_path / "calm", options=options)
    options = replace(options, resume=True, progress=stopping(*stops))
    for _ in stops:
        with pytest.raises(KeyboardInterrupt, match=r"the checkpoint of step \d+ is kept; the same command with --res"):
            finetune(base, corpus, method=method, output=tmp_path / "torn", options=options)
        assert len(list((tmp_path / ".torn.partial" / "run").iterdir())) <= 2  # the best and the last
    torn = finetune(base, corpus, method=method, output=tmp_path / "torn", options=options)
    same(calm, torn)
    assert torn.note.startswith("resumed from step") and torn.note in str(torn) and calm.note == ""
    assert {path.name for path in tmp_path.iterdir()} == {"calm", "torn"}
    if method == "alf":
        assert {choice["step"] for choice in torn.record["switching"]["choices"]} >= ({10, 50} if not text else {4})


def test_a_run_killed_while_it_saves_goes_on(tiny: Tiny, calm: TrainingResult, data_file: Path, tmp_path: Path):
    """SIGKILL between the weights of a checkpoint and its completion."""
    code = (
        "import os, sys\nfrom dataclasses import replace\nimport torch\n"
        "from attnlens.training import intermediate, train\n"
        "from tests.training.test_resume import QUICK\n"
        "torch.set_num_threads(1)\n"
        "save = intermediate.Intermediate.on_save\n"
        "def kill(self, args, state, control, **kwargs):\n"
        "    if state.global_step == 15: os.kill(os.getpid(), 9)\n"
        "    return save(self, args, state, control, **kwargs)\n"
        "intermediate.Intermediate.on_save = kill\n"
        "train.finetune(sys.argv[1], sys.argv[2], output=sys.argv[3], options=QUICK)\n"
    )
    output, base = tmp_path / "torn", tiny("bert")
    command = [sys.executable, "-c", code, str(base), str(data_file), str(output)]
    killed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL and not output.exists()
    assert (tmp_path / ".torn.partial" / "run" / "checkpoint-15" / "trained.safetensors").is_file()
    with pytest.raises(OutputExists, match="got to step 12: --resume goes on from there"):
        finetune(base, data_file, output=output, options=QUICK)
    torn = finetune(base, data_file, output=output, options=replace(QUICK, resume=True))
    a, b = (load_file(result.path / "model.safetensors") for result in (calm, torn))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert calm.metrics == torn.metrics and calm.record["history"] == torn.record["history"]


def test_an_end_by_patience_is_not_gone_back_on(
    tiny: Tiny, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Interrupted while the finished model is written: resumed, it makes no further step."""
    options = replace(QUICK, patience=2, learning_rate=1e-6)
    calm = finetune(tiny("bert"), corpus, output=tmp_path / "calm", options=options)
    assert calm.metrics["steps"] < 24
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"step \d+ is kept"):
        patch.setattr("attnlens.training.train.write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        finetune(tiny("bert"), corpus, output=tmp_path / "torn", options=options)
    same(calm, finetune(tiny("bert"), corpus, output=tmp_path / "torn", options=replace(options, resume=True)))


def test_another_run_is_not_taken_for_this_one(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    base, output = tiny("bert"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        finetune(base, corpus, output=output, options=replace(QUICK, progress=stopping(5)))
    other = replace(corpus, checksum="1" * 64)
    for arguments, data, options, message in [
        ({}, corpus, replace(QUICK, batch_size=6), "batch_size was 7, now 6"),
        ({"seed": 1}, corpus, QUICK, "seed was 0, now 1"),
        ({"method": "last_k"}, corpus, QUICK, "method was full, now last_k"),
        ({}, other, QUICK, "other data"),
    ]:
        with pytest.raises(OutputExists, match=rf"is another one \(.*{message}.*\): repeat its command") as error:
            finetune(base, data, output=output, options=replace(options, resume=True), **arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(OutputExists, match="other base"):
        finetune(tiny("roberta"), corpus, output=output, options=replace(QUICK, resume=True))
    with pytest.raises(OutputExists, match=r"got to step 3: --resume goes on from there, --force begins anew"):
        finetune(base, corpus, output=output, options=QUICK)
    anew = finetune(base, corpus, output=output, options=replace(QUICK, max_steps=3, force=True), seed=1)
    assert anew.note == "" and list(tmp_path.iterdir()) == [output]


def test_what_is_complete_is_left_alone(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """With nothing to resume a run just starts; a finished one says so; another run's checkpoint is not replaced."""
    base, output, resume = tiny("bert"), tmp_path / "out", replace(QUICK, max_steps=3, resume=True)
    made = finetune(base, corpus, output=output, options=resume)
    assert made.note == "no interrupted run was there to resume: trained from the start"
    written = (output / "attnlens.json").stat().st_mtime_ns
    again = finetune(base, corpus, output=output, options=resume)
    assert "is complete: nothing was left to do" in str(again) and again.metrics == made.metrics
    assert (output / "attnlens.json").stat().st_mtime_ns == written
    with pytest.raises(OutputExists, match=r"another run \(other rows, seed was 0, now 1\): choose another output"):
        finetune(base, corpus, output=output, options=resume, seed=1)
    for name in ("attnlens.json", "SHA256SUMS"):
        (output / name).unlink()
    with pytest.raises(OutputExists, match=r"another run \(without a record\)"):
        finetune(base, corpus, output=output, options=resume)


def test_two_runs_do_not_write_one_output(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    def second(step: int, total: int, logs: dict[str, float]) -> None:
        with pytest.raises(OutputExists, match=r"another run is writing .*out: wait for it"):
            finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(QUICK, force=True))

    finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(QUICK, max_steps=2, progress=second))
    assert read_record(tmp_path / "out") is not None


def test_a_loss_that_is_no_number_keeps_the_best_step(tiny: Tiny, calm: TrainingResult, corpus: Corpus, tmp_path: Path):
    """From step 14 on the base's weights are no numbers; steps 3 to 12 were judged."""
    seen: list[Any] = []

    def spoil(step: int, total: int, logs: dict[str, float]) -> None:
        if step == 13 and "loss" in logs:
            for trainer in seen:
                next(iter(trainer.model.parameters())).data.fill_(torch.nan)

    build = QuietTrainer.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuietTrainer, "__init__", lambda self, **given: seen.append(self) or build(self, **given))
        message = (
            r"^the loss on training rows is nan at step 14; step (\d+), the best until then, is kept in .*out: low"
        )
        with pytest.raises(TrainingError, match=message) as error:
            finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(QUICK, progress=spoil))
    record = read_record(tmp_path / "out")
    assert record is not None and record["fault"] == "the loss on training rows is nan at step 14"
    best = record["metrics"]["best_step"]
    assert f"step {best}," in str(error.value) and best in {3, 6, 9, 12}
    assert all(value.isfinite().all() for value in load_file(tmp_path / "out" / "model.safetensors").values())
    scores = {row["step"]: row["macro_f1"] for row in calm.record["history"] if "macro_f1" in row}
    assert record["metrics"]["macro_f1"] == scores[best] == max(scores[step] for step in (3, 6, 9, 12))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("place", ["weights", "optimizer", "end"])
def test_a_full_disk_keeps_the_earlier_checkpoint(
    place: str, calm: TrainingResult, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest
):
    """The weights' writer meets a full disk, the optimizer's own limit on file sizes, or the finished model does."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*_: Any, **__: Any) -> None:
        raise full

    def limit(step: int, total: int, logs: dict[str, float]) -> None:
        if place == "optimizer" and step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        elif place == "weights" and step == 5:
            monkeypatch.setattr("attnlens.training.intermediate.save_file", fails)

    tiny, monkeypatch = request.getfixturevalue("tiny"), request.getfixturevalue("monkeypatch")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if place == "end":
        monkeypatch.setattr("attnlens.training.train.write_record", fails)
    reason = {
        "weights": "the checkpoint of step 6: No space left on device; the checkpoint of step 3 is kept",
        "optimizer": "the checkpoint of step 6: the disk does not take it; the checkpoint of step 3 is kept",
        "end": "No space left on device; the checkpoint of step 24 is kept",
    }[place]
    try:
        with pytest.raises(TrainingError, match=rf"^cannot write .*out: {reason}: --resume goes on from there.$"):
            finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(QUICK, progress=limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    torn = finetune(tiny("bert"), corpus, output=tmp_path / "out", options=replace(QUICK, resume=True))
    same(torn, calm)


def test_the_twin_is_the_same_training_on_shuffled_labels(tiny: Tiny, corpus: Corpus, tmp_path: Path):
    """It stops at the step that the real run kept, whatever is best for it, and is resumed alone."""
    base, output = tiny("bert"), tmp_path / "tuned.ckpt"
    twin = twin_path(output)
    options = replace(QUICK, validation=corpus, null_twin=True)

    def stop(step: int, total: int, logs: dict[str, float]) -> None:
        if output.exists():
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"tuned.ckpt is complete, its twin not; the same command with --resume"
    ):
        finetune(base, corpus, method="last_k", output=output, options=replace(options, progress=stop))
    written = (output / "attnlens.json").stat().st_mtime_ns
    result = finetune(base, corpus, method="last_k", output=output, options=replace(options, resume=True))
    assert (output / "attnlens.json").stat().st_mtime_ns == written
    real, null = read_record(output), read_record(twin)
    assert real is not None and null is not None and result.twin is not None and result.twin.record == null
    assert (real["null_twin"], null["null_twin"]) == (False, True)
    kept = real["metrics"]["best_step"]
    assert null["metrics"]["best_step"] == null["metrics"]["steps"] == kept < 24
    judged = {row["step"]: row["macro_f1"] for row in null["history"] if "macro_f1" in row}
    assert null["metrics"]["macro_f1"] == judged[kept] and max(judged) == kept
    rates = [
        [(row["step"], row["learning_rate"]) for row in r["history"] if "learning_rate" in row] for r in (real, null)
    ]
    assert rates[0][:kept] == rates[1] and real["parameters"] == null["parameters"]
    assert real["data"] == null["data"] and real["base"] == null["base"]
    card = str(result)
    assert "shuffled twin → " in card and f"accuracy {null['metrics']['accuracy']:.3f}" in card.split("twin")[1]
    a, b = (load_file(path / "model.safetensors") for path in (output, twin))
    moved = {name for name in a if not torch.equal(a[name], b[name])}
    assert moved and all(".layer.3." in name or "pooler" in name or "classifier" in name for name in moved)


def test_real_run_and_twin_start_from_the_same_head(
    tiny: Tiny, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At a rate of nearly nothing both end where they began."""
    options = replace(QUICK, max_steps=1, learning_rate=1e-30, null_twin=True)
    finetune(tiny("bert"), corpus, output=tmp_path / "a", options=options)
    a, b = (load_file(path / "model.safetensors") for path in (tmp_path / "a", tmp_path / "a.null"))
    assert torch.equal(a["classifier.weight"], b["classifier.weight"]) and a["classifier.weight"].abs().max() > 0


def test_the_command_says_what_became_of_it(tiny: Tiny, data_file: Path, tmp_path: Path):
    from typer.testing import CliRunner

    from attnlens.cli import app

    words = ["finetune", str(tiny("bert")), "--data", str(data_file), "--max-steps", "3", "--device", "cpu"]
    words += ["-o", str(tmp_path / "out"), "--null-twin", "--resume"]
    shown = [json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout) for _ in range(2)]
    assert shown[0] == shown[1] and shown[0]["null_twin"]["path"] == str(tmp_path / "out.null")
    assert "is complete: nothing was left to do" in CliRunner().invoke(app, words).stdout
