"""What a run would take, told before it starts, from a few real steps that are thrown away."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from attnlens.checkpoints.blocks import transformer_blocks
from attnlens.checkpoints.load import quiet
from attnlens.checkpoints.remote_code import trusted, trusting
from attnlens.text.corpus import Corpus
from attnlens.training.accounting import trained_parameters
from attnlens.training.alf import Plan, admitted
from attnlens.training.cost import batch_loss, on_device
from attnlens.training.importance import SCORES
from attnlens.training.job import Job, prepare
from attnlens.training.loop import training_arguments
from attnlens.training.memory import model_bytes
from attnlens.training.methods import method_named
from attnlens.training.options import TrainOptions
from attnlens.training.output import seeded
from attnlens.training.train import DEFAULTS, check_seed, read_rows

TIMED = 3  # steps, after one that is not
ADAM = 2  # numbers that AdamW keeps of each parameter in training


@dataclass(frozen=True)
class Estimate:
    """What a run would take. Bytes and seconds are expected ones, and those of a method that chooses blocks at most.

    parameters: in training at a `steady` time and at their `peak` (in probes, if those train), as in the record's
    accounting. heldout: rows that every evaluation reads. memory: bytes of `weights`, their `gradients`, what the
    `optimizer` keeps, the `activations` of the longest batch, and the `peak` of all. seconds: of a `step`, of all
    `training` steps, of `evaluation`, and in `all`.
    """

    base: str
    method: str
    steps: int
    evaluations: int
    heldout: int
    batch_size: int
    parameters: dict[str, Any]
    memory: dict[str, int]
    seconds: dict[str, float]
    device: str

    def __str__(self) -> str:
        """A card of four lines."""
        steady, peak = self.parameters["steady"], self.parameters["peak"]
        trained = f"{steady['parameters']:,} of {self.parameters['total']:,} parameters ({_share(steady)})"
        if peak != steady:
            trained += f"; {peak['parameters']:,} in probes ({_share(peak)})"
        gigabytes = {name: f"{size / 1e9:.2f}" for name, size in self.memory.items()}
        parts = ", ".join(f"{name} {size}" for name, size in gigabytes.items() if name != "peak")
        return (
            f"{self.base} by {self.method!r}: an estimate; nothing was trained or written\n"
            f"trains: {trained}\n"
            f"memory: about {gigabytes['peak']} GB at the peak ({parts})\n"
            f"time: about {duration(self.seconds['all'])} on {self.device}: {self.steps} steps of "
            f"{self.batch_size} rows at {self.seconds['step']:.2g} s, {self.evaluations} evaluations"
        )

    @property
    def record(self) -> dict[str, Any]:
        """All of it in plain JSON values."""
        return asdict(self)


def estimate(
    base: str | Path,
    train: Corpus | str | Path,
    *,
    method: str = "full",
    seed: int = 0,
    options: TrainOptions = DEFAULTS,
) -> Estimate:
    """What `finetune` with the same arguments would take; the model is loaded, steps are made on it, and it is dropped.

    Memory is that of float32 training with AdamW, without the libraries': weights, gradients and two numbers more for
    each parameter in training, and the activations that a forward pass over the longest rows keeps for the backward
    pass (counted without activation checkpointing). Global random states are left as they were.
    """
    chosen = method_named(method, options)
    check_seed(seed)
    data, _ = read_rows(train, options, seed)
    with quiet(), seeded(seed), trusting(options.trust_remote_code or trusted()):
        return _estimated(prepare(base, data, chosen, options, seed))


def _estimated(job: Job) -> Estimate:
    arguments = training_arguments(job, Path("nowhere"))
    steps, pause = arguments.max_steps, arguments.eval_steps
    assert pause is not None
    evaluations = math.ceil(steps / pause) + job.work.start
    job.model.to(arguments.device)
    plan = job.selection.plan(steps) if job.selection.plan is not None else None
    probing = SCORES[plan.score].meter is not None if plan is not None else False
    updating = plan is not None and SCORES[plan.score].updates
    everything = _counts(job)
    probe = _measured(job) if probing else None
    if plan is not None:
        _admit(job, plan)
    steady, run = _counts(job), _measured(job)
    peak = everything if updating else steady
    trains = peak["peak"]["parameters"]
    weights = model_bytes(job.model)
    memory = {"weights": weights, "gradients": 4 * trains, "optimizer": 4 * ADAM * trains}
    memory["activations"] = max(run[0], probe[0] if probe is not None else 0)
    probes = _probe_steps(plan, steps) if plan is not None and probe is not None else 0
    training = run[1] * (steps - probes) + (probe[1] * probes if probe is not None else 0)
    judged = _evaluation(job) * evaluations
    return Estimate(
        base=job.base.name,
        method=job.method.name,
        steps=steps,
        evaluations=evaluations,
        heldout=len(job.work.heldout),
        batch_size=job.options.batch_size * job.options.accumulation,
        parameters={"total": steady["total"], "steady": steady["peak"], "peak": peak["peak"]},
        memory={**memory, "peak": sum(memory.values())},
        seconds={"step": training / steps, "training": training, "evaluation": judged, "all": training + judged},
        device=arguments.device.type,
    )


def _counts(job: Job) -> dict[str, Any]:
    return trained_parameters(job.base.model, None, 1, job.model)


def _admit(job: Job, plan: Plan) -> None:
    """Train as many blocks as a selection may hold, from the first on: the gradient then passes through all others."""
    blocks = transformer_blocks(job.base.model)
    taken = admitted([list(block.parameters()) for block in blocks], plan, range(len(blocks)))
    for number, block in enumerate(blocks):
        block.requires_grad_(number in taken)
    job.model.zero_grad()


def _probe_steps(plan: Plan, steps: int) -> int:
    """How many of the steps are probes, by the order in which a controller goes through them."""
    probes = min(plan.warmup, steps)
    done = probes + plan.run
    while not plan.commit and done < steps and (plan.until is None or done <= plan.until):
        probes += min(plan.probe, steps - done)
        done += plan.probe + plan.run
    return probes


def _measured(job: Job) -> tuple[int, float]:
    """Bytes that a forward pass over the longest rows keeps, and the seconds of a step on rows drawn at random."""
    job.model.train()
    longest = sorted(job.work.train, key=lambda row: len(row["input_ids"]))[-job.options.batch_size :]
    activations = _kept(job, on_device(job, longest))
    optimizer = AdamW([p for p in job.model.parameters() if p.requires_grad], lr=1e-6)
    generator, taken = np.random.default_rng(job.seed), list[float]()
    for _ in range(TIMED + 1):
        start = time.perf_counter()
        loss = torch.zeros(())
        for _ in range(job.options.accumulation):
            drawn = generator.integers(len(job.work.train), size=job.options.batch_size)
            with _precision(job):
                loss = batch_loss(job, on_device(job, [job.work.train[number] for number in drawn]))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        taken.append(time.perf_counter() - start)
    return activations, median(taken[1:])


def _kept(job: Job, batch: dict[str, Tensor]) -> int:
    """Bytes of all tensors that the backward pass will need and that are not the model's own, shared storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*job.model.parameters(), *job.model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _precision(job):
        loss = batch_loss(job, batch)
    del loss  # only now may the storages be used again, and counted twice
    return sum(kept.values())


def _precision(job: Job) -> AbstractContextManager[Any]:
    """What the Trainer computes in."""
    device = next(job.model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16) if job.options.dtype == "bfloat16" else nullcontext()


def _evaluation(job: Job) -> float:
    """Seconds of one evaluation of all held-out rows, from one batch of them."""
    job.model.eval()
    batch = on_device(job, job.work.heldout[: job.options.batch_size])
    start = time.perf_counter()
    with torch.no_grad(), _precision(job):
        batch_loss(job, batch).item()
    return (time.perf_counter() - start) * math.ceil(len(job.work.heldout) / job.options.batch_size)


def _share(part: dict[str, Any]) -> str:
    blocks = f", {100 * part['of_blocks']:.1f} % of the blocks'" if part["of_blocks"] is not None else ""
    return f"{100 * part['of_total']:.1f} %{blocks}"


def duration(seconds: float) -> str:
    """Such as 45 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
