"""What the fine-tuning methods cost: time of a step, peak memory and checkpoint of each against `full`.

all-MiniLM-L6-v2 and a GPT-2-small shape with random weights, as classifiers of random words. Every method of the
registry at its defaults (`layers`: the first and the last block; `alf`: a quarter of the block parameters), and `alf`
while it probes. Each step is forward, backward, optimizer and controller; models are built anew in interleaved
repetitions, the first step of each is not timed and the minimum is kept: of the clock (`/full`), and of the processor's
time (`cpu`), which other processes disturb less. Where embeddings are frozen and whole blocks
train, time is held against FLOPs: (1 + (L − lowest) / L + active / L) / 3 of full training with frozen embeddings. Each
variant runs once in a process of its own for the memory it adds. About ten minutes on two cores.
Usage: python tests/bench/bench_finetune.py [--models minilm] [--methods full alf] [--repetitions 3] [--tokens 128]
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2Model

from attnlens.checkpoints.blocks import head_parameters, transformer_blocks
from attnlens.checkpoints.load import quiet
from attnlens.checkpoints.packaged import encoder
from attnlens.core.errors import UnsupportedModel
from attnlens.text.corpus import Corpus, Example
from attnlens.training.alf import LayerController
from attnlens.training.cost import batch_loss
from attnlens.training.job import Job, prepare
from attnlens.training.methods import METHODS
from attnlens.training.options import TrainOptions
from attnlens.training.output import seeded
from attnlens.training.split import CLASSIFICATION, Split

MODELS = {"minilm": 6, "gpt2": 12}  # blocks
BATCH = {"minilm": 16, "gpt2": 4}
STEPS = 4  # a run of a probe of two steps and more; how many of them are made, the caller decides
ASIDE = 0.20  # share of the FLOP bound by which the time may lie on either side


@dataclass(frozen=True)
class Variant:
    """A method under options; probe: measured while all blocks are probed."""

    name: str
    method: str
    options: dict[str, Any]
    probe: bool = False


def variants(model: str) -> dict[str, Variant]:
    """Every method, full training without embeddings, the two probes of `alf`."""
    quarter = {"budget": 0.25, "denominator": "blocks"}
    settings = {"layers": {"layers": (0, MODELS[model] - 1)}, "alf": quarter}
    found = [Variant(name, name, settings.get(name, {})) for name in METHODS]
    found[1:1] = [Variant("full, embeddings frozen", "last_k", {"k": MODELS[model]})]
    found += [
        Variant(f"alf, probe by {score}", "alf", quarter | {"score": score}, probe=True)
        for score in ("weight_change", "grad_ratio")
    ]
    return {variant.name: variant for variant in found}


def build_gpt2(folder: Path) -> Path:
    """GPT-2 small, random weights; MiniLM's tokenizer reads words."""
    torch.manual_seed(0)
    GPT2Model(GPT2Config(use_cache=False)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(encoder())
    tokenizer.model_max_length = 1024
    tokenizer.save_pretrained(folder)
    return folder


def words(rows: int, tokens: int) -> Split:
    """Rows of random words that are cut at `tokens`, with two labels."""
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(encoder())
    known = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii())
    drawn = np.random.default_rng(0).choice(known, (rows, tokens))
    texts = tuple(Example(" ".join(row), str(i), str(i), "ab"[i % 2]) for i, row in enumerate(drawn.tolist()))
    corpus = Corpus(texts, "words", "0" * 64, False)
    return Split(CLASSIFICATION, corpus, corpus, corpus, ("a", "b"), list(range(rows)), None)


class Loop:
    """The project's job in a plain loop; a step is all that a Trainer's step does to the model."""

    def __init__(self, base: Path, variant: Variant, batch: int, tokens: int):
        options = TrainOptions(batch_size=batch, max_length=tokens, device="cpu", **variant.options)
        torch.manual_seed(0)  # of dropout: every repetition chooses the same blocks
        with quiet(), seeded(0):
            self.job: Job = prepare(base, words(batch, tokens), METHODS[variant.method], options, 0)
        self.model = self.job.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.inputs = self.job.work.collate(self.job.work.train)
        self.controller = None
        if self.job.selection.plan is not None:
            plan = replace(self.job.selection.plan(2 * STEPS), warmup=1000 if variant.probe else 2, skip=0)
            own, model = head_parameters(self.job.base.model), self.job.base.model
            head = [parameter for name, parameter in model.named_parameters() if name in own]
            blocks = [list(block.parameters()) for block in transformer_blocks(model)]
            self.controller = LayerController(blocks, head, self.optimizer, plan)
            while not variant.probe and self.controller.probing:
                self.step()

    def step(self) -> None:
        """Forward, backward, optimizer, controller."""
        batch_loss(self.job, self.inputs).backward()
        self.optimizer.step()
        if self.controller is not None:
            self.controller.step()
        self.optimizer.zero_grad()

    def active(self) -> list[int] | None:
        """Blocks that train, where whole blocks and head are all that does; None otherwise."""
        try:
            blocks = transformer_blocks(self.job.base.model)
            head = head_parameters(self.job.base.model)
        except UnsupportedModel:
            return None
        if self.job.selection.model is not None:
            return None
        own = {id(parameter) for block in blocks for parameter in block.parameters()}
        named = self.job.base.model.named_parameters()
        if any(p.requires_grad and id(p) not in own and name not in head for name, p in named):
            return None
        trained = [[p.requires_grad for p in block.parameters()] for block in blocks]
        if any(any(block) and not all(block) for block in trained):
            return None  # an adapter inside
        return [number for number, block in enumerate(trained) if all(block)]


def seconds(base: Path, chosen: list[Variant], arguments: argparse.Namespace, batch: int) -> dict[str, dict[str, Any]]:
    """Minima over interleaved repetitions, of the clock and of the processor's time; what was trained."""
    best = {variant.name: {"seconds": float("inf"), "cpu": float("inf")} for variant in chosen}
    for _ in range(arguments.repetitions):
        for variant in chosen:
            loop = Loop(base, variant, batch, arguments.tokens)
            loop.step()
            for _ in range(arguments.steps):
                clock, own = time.perf_counter(), time.process_time()
                loop.step()
                row = best[variant.name]
                row["cpu"] = min(row["cpu"], time.process_time() - own)
                row["seconds"] = min(row["seconds"], time.perf_counter() - clock)
            best[variant.name] |= {"active": loop.active(), **counted(loop)}
    return best


def counted(loop: Loop) -> dict[str, int]:
    """Parameters in training, all parameters, bytes of what is saved."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in loop.model.parameters()]
    with tempfile.TemporaryDirectory() as folder, quiet():
        loop.job.save(Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"trained": sum(n for n, on in counts if on), "total": sum(n for n, _ in counts), "bytes": size}


def peak(name: str, model: str, base: Path, batch: int, tokens: int) -> float:
    """MiB that loading and training add to the peak of a fresh process."""
    command = [sys.executable, __file__, "--peak", name, model, str(base), str(batch), str(tokens)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, model: str, base: str, batch: int, tokens: int) -> None:
    """Child process: resident memory before the model is loaded, and its peak over steps of the variant's phase."""
    torch.set_num_threads(1)
    before = rss("VmRSS")
    loop = Loop(Path(base), variants(model)[name], batch, tokens)
    # Forget the peaks of loading, and of the probe before a run, and give back what they have freed.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        loop.step()
    print(rss("VmHWM") - before)


def rss(field: str) -> float:
    """Resident memory of this process in MiB (Linux)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def bound(active: list[int], blocks: int) -> float:
    """FLOPs of a step that trains these blocks and the head, over those of one that trains all blocks."""
    lowest = min(active, default=blocks)
    return (1 + (blocks - lowest) / blocks + len(active) / blocks) / 3


def print_row(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    time_bound = f"{row['frozen_ratio']:6.2f} {row['bound']:6.2f}" if row["bound"] is not None else "     –      –"
    verdict = "" if row["within"] is None else ("  ok" if row["within"] else "  missed")
    print(
        f"{name:28s} {100 * row['trained'] / row['total']:9.2f} {row['seconds']:8.3f} {row['ratio']:6.2f} "
        f"{row['cpu_ratio']:6.2f} {time_bound} {row['mib']:8.0f} {row['memory_ratio']:6.2f} "
        f"{row['bytes'] / 1e6:9.2f}{verdict}"
    )


def table(model: str, base: Path, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All rows of a model, with the ratios of this run."""
    batch = arguments.batch or BATCH[model]
    every = variants(model)
    needed = ("full", "full, embeddings frozen")
    names = [name for name, v in every.items() if name in needed or v.method in (arguments.methods or METHODS)]
    rows = seconds(base, [every[name] for name in names], arguments, batch)
    full, frozen = (rows[name] for name in needed)
    for name in names:
        rows[name]["mib"] = peak(name, model, base, batch, arguments.tokens)
    for name, row in rows.items():
        row["ratio"], row["cpu_ratio"] = row["seconds"] / full["seconds"], row["cpu"] / full["cpu"]
        row["memory_ratio"] = row["mib"] / full["mib"]
        row["frozen_ratio"] = row["cpu"] / frozen["cpu"]
        known = row["active"] is not None and not every[name].probe
        row["bound"] = bound(row["active"], MODELS[model]) if known else None
        row["within"] = abs(row["frozen_ratio"] / row["bound"] - 1) <= ASIDE if known else None
    load = f"load {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores"
    print(f"\n{model}, {batch} texts of {arguments.tokens} tokens, {load}")
    print(f"{'method':28s} trained % {'s/step':>8} {'/full':>6} {'cpu':>6} {'/froz.':>6} {'bound':>6}", end=" ")
    print(f"{'+MiB':>8} {'/full':>6} {'saved MB':>9}")
    for name, row in rows.items():
        print_row(name, row)
    sys.stdout.flush()
    return rows


@contextmanager
def folder_of(model: str) -> Iterator[Path]:
    """The base's folder."""
    if model == "minilm":
        yield encoder()
        return
    folder = Path(tempfile.mkdtemp())
    try:
        yield build_gpt2(folder)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Print a table for each model, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="beside `full`; instead of all")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, help="texts, instead of 16 or 4")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each repetition")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        name, model, base, batch, tokens = arguments.peak
        print_peak(name, model, base, int(batch), int(tokens))
        return
    torch.set_num_threads(1)
    found = {}
    for model in arguments.models:
        with folder_of(model) as base:
            found[model] = table(model, base, arguments)
    print(json.dumps({"torch": torch.__version__, "cores": os.cpu_count(), "models": found}))


if __name__ == "__main__":
    main()
