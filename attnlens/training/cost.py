"""What a run costs: floating-point operations, time, memory and bytes on the disk."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerControl, TrainerState, TrainingArguments

from attnlens.training.job import Job
from attnlens.training.memory import PeakMemory
from attnlens.training.observer import Observer
from attnlens.training.processes import processes
from attnlens.training.switching import LayerSwitching
from attnlens.training.work import Row

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# Torch counts the attention kernels of accelerators, but not those of CPUs.
KERNELS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
BATCHED = ("bmm", "baddbmm")  # products of two activations: attention, wherever it is written out


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one row's forward and backward pass at `length` tokens, two a multiply-add.

    matrices grow with the tokens, attention with their square (a causal one too: its kernels skip less than half).
    """

    matrices: int
    attention: int
    length: int

    def over(self, tokens: int, squares: int) -> float:
        """Of rows whose lengths, padding included, add up to `tokens` and their squares to `squares`."""
        return self.matrices * tokens / self.length + self.attention * squares / self.length**2


def training_flops(job: Job, row: Row) -> Flops:
    """Count one forward and backward pass over `row`, alone in its batch, with the parameters that train now.

    By torch's counter, which runs the pass; gradients and random states are left as they were. Elementwise operations,
    norms and the optimizer's step are not counted.
    """
    kept = [(parameter, parameter.grad) for parameter in job.model.parameters()]
    counter = FlopCounterMode(display=False, custom_mapping=KERNELS)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        batch = on_device(job, [row])
        with counter:
            batch_loss(job, batch).backward()
    for parameter, gradient in kept:
        parameter.grad = gradient
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for kind, n in counts.items() if str(kind).split(".")[-1] in BATCHED or "attention" in str(kind))
    return Flops(sum(counts.values()) - attention, attention, batch["input_ids"].shape[1])


def on_device(job: Job, rows: list[Row]) -> dict[str, Tensor]:
    """The rows as a batch, where the model is."""
    device = next(job.model.parameters()).device
    return {name: value.to(device) for name, value in job.work.collate(rows).items()}


def batch_loss(job: Job, batch: Mapping[str, Tensor]) -> Tensor:
    """The training loss of a batch, as the Trainer computes it."""
    if job.work.loss is None:
        return job.model(**batch).loss
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return job.work.loss(job.model(**inputs), batch["labels"], num_items_in_batch=None)


def bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder: what a method needs to be written down, before tokenizer and record."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Cost(Observer):
    """Counts the operations of each set of training parameters once, and takes time and memory of every step.

    The counter is slow, so a set is counted after the training on one row of the median length, and multiplied by the
    tokens of all its steps. Time of a step: forward, backward and update; reading the rows, evaluations and what other
    observers do are left out. Probes of a method that chooses blocks stand apart from what is trained between them.
    """

    key = "cost"

    def __init__(self, job: Job, switching: LayerSwitching | None = None):
        self._job, self._switching = job, switching
        self._seconds: dict[str, list[float]] = {}
        self._peaks: dict[str, int | None] = {}
        # Which parameters trained, as a line of 0 and 1, from which step on; and what each such set has read.
        self._sets: list[tuple[int, str]] = []
        self._read: dict[str, list[int]] = {}
        self._lengths = Counter[int]()
        self._flops: dict[str, Flops] = {}
        self._elapsed = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Start the clock and the memory's peak."""
        self._hook = self._job.model.register_forward_pre_hook(self._noted, with_kwargs=True)
        self._memory = PeakMemory(self._job.model, args.device)
        self._device, self._phase = args.device, ""
        self._began = time.perf_counter() - self._elapsed

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Note what trains in this step."""
        probing = self._switching is not None and self._switching.controller.probing
        if (phase := "probe" if probing else "run") != self._phase:
            self._peak()
            self._phase = phase
        active = "".join("01"[parameter.requires_grad] for parameter in self._job.model.parameters())
        if not self._sets or active != self._sets[-1][1]:
            self._sets.append((state.global_step + 1, active))
        self._start = self._now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Take the time."""
        now = self._now()
        self._seconds.setdefault(self._phase, []).append(round(now - self._start, 6))
        self._elapsed = now - self._began

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Count the operations of each set, now that nothing is disturbed by it."""
        self._peak()
        self._elapsed = self._now() - self._began
        self._hook.remove()
        if not self._lengths:
            return
        typical = sorted(self._lengths.elements())[self._lengths.total() // 2]
        nearest = min(self._job.work.train, key=lambda row: abs(len(row["input_ids"]) - typical))
        parameters = list(self._job.model.parameters())
        trained = [parameter.requires_grad for parameter in parameters]
        self._job.model.train()
        for active in self._read:
            for parameter, sign in zip(parameters, active, strict=True):
                parameter.requires_grad = sign == "1"
            self._flops[active] = training_flops(self._job, nearest)
        for parameter, trains in zip(parameters, trained, strict=True):
            parameter.requires_grad = trains

    def facts(self) -> dict[str, Any]:
        """flops of all training steps, as if every process had read as much as this one; flops_a_step: on average, from
        step `first` on, whenever what trains changed.

        seconds of the whole training, evaluations included; step_seconds: median of the steps between probes.
        peak_memory in bytes, of a `memory_kind`; phases: the same for run and probe. None where unknown.
        """
        steps = sum(map(len, self._seconds.values()))
        ends = [*(first for first, _ in self._sets[1:]), steps + 1]
        counts = Counter[str]()
        for (first, active), end in zip(self._sets, ends, strict=True):
            counts[active] += end - first
        flops = {active: processes() * self._flops[active].over(*self._read[active]) for active in self._flops}
        peaks = [peak for peak in self._peaks.values() if peak is not None]
        return {
            "flops": round(sum(flops.values())) if flops else None,
            "flops_a_step": [
                {"first": first, "flops": round(flops[active] / counts[active])}
                for first, active in self._sets
                if active in flops
            ],
            "seconds": round(self._elapsed, 3),
            "step_seconds": median(self._seconds["run"]) if "run" in self._seconds else None,
            "peak_memory": max(peaks, default=None),
            "memory_kind": self._memory.kind,
            "phases": {
                phase: {"steps": len(taken), "step_seconds": median(taken), "peak_memory": self._peaks.get(phase)}
                for phase, taken in self._seconds.items()
            },
        }

    def state(self) -> dict[str, Any]:
        """What was counted, and the sums of what was read."""
        return {
            "seconds": self._seconds,
            "peaks": self._peaks,
            "sets": self._sets,
            "read": self._read,
            "lengths": list(self._lengths.items()),
            "elapsed": self._elapsed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._seconds, self._peaks, self._read = state["seconds"], state["peaks"], state["read"]
        self._sets = [(first, active) for first, active in state["sets"]]
        self._lengths, self._elapsed = Counter(dict(state["lengths"])), state["elapsed"]

    def _noted(self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Add up tokens and their squares; evaluations are none of our business."""
        if not model.training:
            return
        rows, length = inputs["input_ids"].shape
        read = self._read.setdefault(self._sets[-1][1], [0, 0])
        read[0] += rows * length
        read[1] += rows * length**2
        self._lengths[length] += rows

    def _peak(self) -> None:
        """Look at the memory at the end of a phase."""
        found = self._memory.look()
        if self._phase and found is not None:
            self._peaks[self._phase] = max(found, self._peaks.get(self._phase) or 0)

    def _now(self) -> float:
        """The time at which all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
