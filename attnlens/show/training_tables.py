"""The tables of training: how each tuned model was trained, what that cost and what it reached, by its record."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Comparison
from attnlens.show.training_records import (
    MOST_BLOCKS,
    QUALITIES,
    entries,
    number,
    numbers,
    part,
    switching,
    text,
    texts,
    training_records,
    whole,
)

# What a training history may hold, in the order of the table.
CURVES = ("step", "loss", "learning_rate", "heldout_loss", *QUALITIES)
QUALITY = ("best_step", "loss", "base_perplexity", *QUALITIES)
SHARES = ("instantaneous", "mean", "peak", "cumulative")  # of the accounting
MIB = 2**20


def curves_table(comparison: Comparison) -> pd.DataFrame:
    """Training histories as the checkpoints tell them: model, step and what was recorded at it; empty where none is."""
    frames = []
    for model, record in training_records(comparison).items():
        rows = [
            {name: number(row.get(name)) for name in CURVES if name in row} for row in entries(record.get("history"))
        ]
        known = [{name: value for name, value in row.items() if not np.isnan(value)} for row in rows]
        frames.append(pd.DataFrame([row for row in known if "step" in row]).assign(model=model))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if "step" not in table:
        return pd.DataFrame(columns=["model", "step"])
    return table[["model", *(name for name in CURVES if name in table)]]


def training_table(comparison: Comparison) -> pd.DataFrame:
    """How each tuned model was trained and what it reached on held-out data; empty where none tells it."""
    rows = []
    for model, record in training_records(comparison).items():
        metrics = part(record, "metrics")
        counts = part(record, "parameters")
        trainable, total = number(counts.get("trainable")), number(counts.get("total"))
        row = {"model": model, "method": text(record.get("method")), "task": text(record.get("task"))}
        row |= {"seed": number(record.get("seed")), "trained": 100 * trainable / total if total else np.nan}
        row |= {"seconds": number(record.get("seconds"))}
        rows.append(row | {name: number(metrics.get(name)) for name in QUALITY})
    return pd.DataFrame(rows)


def cost_table(comparison: Comparison) -> pd.DataFrame:
    """What each run cost: shares of parameters in percent of all and of the blocks', FLOPs, seconds, MiB.

    mean over the steps, peak, cumulative: the parameters that may have changed in the result.
    """
    rows = []
    for model, record in training_records(comparison).items():
        row: dict[str, Any] = {"model": model, "method": text(record.get("method"))}
        for name in SHARES:
            share = part(record, "accounting", name)
            row |= {f"{name}_of_total": 100 * number(share.get("of_total"))}
            row |= {f"{name}_of_blocks": 100 * number(share.get("of_blocks"))}
        cost = part(record, "cost")
        row |= {name: number(cost.get(name)) for name in ("flops", "seconds", "step_seconds")}
        row |= {"peak_memory": number(cost.get("peak_memory")) / MIB, "memory_kind": text(cost.get("memory_kind"))}
        row |= {"checkpoint": number(cost.get("checkpoint_bytes")) / MIB}
        for phase in ("probe", "run"):
            facts = part(cost, "phases", phase)
            row |= {f"{phase}_memory": number(facts.get("peak_memory")) / MIB}
            row |= {f"{phase}_step_seconds": number(facts.get("step_seconds"))}
        rows.append(row)
    return _known(rows, ("model", "method", "memory_kind"))


def forgetting_table(comparison: Comparison) -> pd.DataFrame:
    """What each tuned model lost on a general text: loss before and after and KL, in nats a token; its name.

    drift: mean over tokens of ‖h − h₀‖ / ‖h₀‖ behind the last layer, which every model has.
    """
    rows = []
    for model, record in training_records(comparison).items():
        facts = part(record, "forgetting")
        row: dict[str, Any] = {"model": model, "text": text(facts.get("text"))}
        row |= {name: number(facts.get(name)) for name in ("texts", "tokens", "loss_before", "loss_after", "kl")}
        drift = numbers(facts.get("drift"))
        row |= {"change": row["loss_after"] - row["loss_before"], "drift": drift[-1] if drift else np.nan}
        rows.append(row)
    return _known(rows, ("model", "text"))


def overlap_table(comparison: Comparison) -> pd.DataFrame:
    """Jaccard of the blocks chosen last with those of each control and with the real run's; `blocks` counts from 1."""
    rows = []
    for model, record in training_records(comparison).items():
        facts = part(record, "selection_overlap")
        active = [whole(block) for block in facts["active"]] if isinstance(facts.get("active"), list) else []
        if not active or None in active:
            continue
        row: dict[str, Any] = {
            "model": model,
            "blocks": " ".join(str(block + 1) for block in active if block is not None),
        }
        row |= {name: number(part(facts, "jaccard").get(name)) for name in ("last_k", "first_k", "rms")}
        rows.append(row | {name: number(facts.get(name)) for name in ("chance", "stability", "real")})
    return pd.DataFrame(rows)


def classes_table(comparison: Comparison) -> pd.DataFrame:
    """Held-out precision, recall and F1 (0 to 1) of each class and tuned model, with its number of rows."""
    rows = []
    for model, record in training_records(comparison).items():
        for facts in entries(part(record, "per_class").get("classes")):
            row: dict[str, Any] = {"model": model, "class": text(facts.get("label"))}
            rows.append(row | {name: number(facts.get(name)) for name in ("precision", "recall", "f1", "n")})
    return _known(rows, ("model", "class"))


def selection_table(comparison: Comparison) -> pd.DataFrame:
    """Who trained when: model, first and last step, block (from 1), kind (frozen, probe, trained), score (percent).

    score: at the choice before, in percent of the highest of that choice; empty of a probe.
    """
    rows = []
    for model, record in training_records(comparison).items():
        told = switching(record)
        for stretch in () if told is None else told.stretches:
            top = max(map(abs, stretch.scores), default=0.0)
            for block in range(told.blocks if told is not None else 0):
                kind = "trained" if block in stretch.active else "frozen"
                score = 100 * stretch.scores[block] / top if top > 0 else np.nan
                rows.append(
                    {
                        "model": model,
                        "first": stretch.first,
                        "last": stretch.last,
                        "block": block + 1,
                        "kind": "probe" if stretch.kind == "probe" else kind,
                        "score": score,
                    }
                )
    return pd.DataFrame(rows, columns=["model", "first", "last", "block", "kind", "score"])


def movement_table(comparison: Comparison) -> pd.DataFrame:
    """Weight change so far in percent of the block's part: model, step, block (from 1), part, change."""
    rows = []
    for model, facts, steps, blocks in _movements(comparison):
        parts = texts(facts.get("parts"))
        for step, by_block in zip(steps, _matrix(facts.get("change")), strict=False):
            for block, by_part in zip(range(blocks), by_block, strict=False):
                for name, value in zip(parts, numbers(by_part), strict=False):
                    rows.append((model, step, block + 1, name, 100 * value))
    table = pd.DataFrame(rows, columns=["model", "step", "block", "part", "change"])
    return table[table["change"].notna()].reset_index(drop=True)


def gradient_table(comparison: Comparison) -> pd.DataFrame:
    """Gradient norms: model, step, block (from 1), gradient; empty where a block was frozen."""
    rows = []
    for model, facts, steps, blocks in _movements(comparison):
        for step, by_block in zip(steps, _matrix(facts.get("gradient")), strict=False):
            rows += [
                (model, step, block + 1, value) for block, value in zip(range(blocks), numbers(by_block), strict=False)
            ]
    table = pd.DataFrame(rows, columns=["model", "step", "block", "gradient"])
    known = table.groupby("model")["gradient"].transform(lambda values: values.notna().any())
    return table[known.astype(bool)].reset_index(drop=True)


def attention_table(comparison: Comparison) -> pd.DataFrame:
    """Attention entropy on a fixed batch while training: model, step, layer (from 1), entropy."""
    rows = []
    for model, record in training_records(comparison).items():
        facts = part(record, "attention")
        for step, by_layer in zip(numbers(facts.get("steps")), _matrix(facts.get("entropy")), strict=False):
            values = numbers(by_layer)[:MOST_BLOCKS]
            rows += [(model, step, layer, value) for layer, value in enumerate(values, start=1)]
    table = pd.DataFrame(rows, columns=["model", "step", "layer", "entropy"])
    return table.dropna().reset_index(drop=True)


def _movements(comparison: Comparison) -> Iterator[tuple[str, dict[str, Any], list[float], int]]:
    """Of each model that tells how its weights moved: name, facts, steps, number of blocks."""
    for model, record in training_records(comparison).items():
        facts = part(record, "movement")
        steps, blocks = numbers(facts.get("steps")), len(texts(facts.get("blocks")))
        if steps and not np.isnan(steps).any() and 0 < blocks <= MOST_BLOCKS:
            yield model, facts, steps, blocks


def _matrix(value: object) -> list[Any]:
    """Rows of a nested list."""
    return value if isinstance(value, list) else []


def _known(rows: list[dict[str, Any]], names: tuple[str, ...]) -> pd.DataFrame:
    """The rows that hold a number at all."""
    table = pd.DataFrame(rows)
    figures = [name for name in table if name not in names]
    return table[table[figures].notna().any(axis=1)].reset_index(drop=True) if len(table) else table
