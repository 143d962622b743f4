"""Training records with everything that a run may tell, of six blocks, written out by hand."""

import dataclasses
from typing import Any

from attnlens.analysis.results import Comparison

BLOCKS = 6
PROBES = ((1, 10, (2, 4, 5)), (43, 50, (3, 4, 5)), (83, 90, (3, 4, 5)))  # first, last step, chosen blocks
SCORES = ((4.0, 5.0, 8.0, 6.0, 9.0, 10.0), (4.0, 5.0, 6.0, 7.0, 8.0, 10.0), (4.0, 5.0, 6.0, 8.0, 8.0, 16.0))


def record(*, null: bool = False, blocks: int = BLOCKS) -> dict[str, Any]:
    """A run of 160 steps by `alf`, or its twin; steps, scores and sizes are easy to check by hand."""
    ends = [first - 1 for first, _, _ in PROBES[1:]] + [160]
    everything = list(range(blocks))
    phases = []
    for (first, last, active), _ in zip(PROBES, ends, strict=True):
        phases += [{"first": first, "kind": "probe", "active": everything}]
        phases += [{"first": last + 1, "kind": "run", "active": list(active)}]
    choices = [
        {"step": last, "scores": list(score), "smoothed": [*score, *[1.0] * (blocks - BLOCKS)], "active": list(active)}
        for (_, last, active), score in zip(PROBES, SCORES, strict=True)
    ]
    watched = [40, 80, 120, 160]
    moved = [[[0.01 * step * (b > 2) / 40, 0.02 * step * (b > 2) / 40] for b in everything] for step in watched]
    overlap = {"active": [3, 4, 5], "jaccard": {"last_k": 1.0, "first_k": 0.0, "rms": 0.5}, "chance": 0.35}
    return {
        "method": "alf",
        "task": "sequence-classification",
        "seed": 0,
        "null_twin": null,
        "selection": {"budget": 0.25, "denominator": "total", "score": "weight_change", "commit": False},
        "parameters": {"trainable": 5_474_312, "total": 22_716_296},
        "metrics": {"accuracy": 0.125 if null else 0.957, "macro_f1": 0.028 if null else 0.957, "steps": 160},
        "history": [{"step": 1, "loss": 2.0}, {"step": 160, "loss": 0.2}],
        "switching": {
            "blocks": [f"bert.encoder.layer.{number}" for number in everything],
            "plan": {"score": "weight_change"},
            "choices": choices,
            "phases": phases,
        },
        "movement": {
            "steps": watched,
            "blocks": [f"bert.encoder.layer.{number}" for number in everything],
            "parts": ["attention", "mlp"],
            "change": moved,
            "gradient": [[0.5 + b if b > 2 else None for b in everything] for _ in watched],
        },
        "attention": {
            "steps": watched,
            "layers": everything,
            "entropy": [[3.0 - 0.001 * step * b for b in everything] for step in watched],
        },
        "accounting": {
            "mean": {"of_total": 0.279, "of_blocks": 0.581},
            "peak": {"of_total": 0.475, "of_blocks": 1.0},
            "cumulative": {"of_total": 0.241, "of_blocks": 0.5},
        },
        "cost": {
            "flops": 3.5e12,
            "seconds": 80.0,
            "step_seconds": 0.25,
            "peak_memory": 900 * 2**20,
            "memory_kind": "process",
            "checkpoint_bytes": 87 * 2**20,
        },
        "forgetting": {"text": "general sentences", "tokens": 4000, "loss_before": 3.0, "loss_after": 3.5, "kl": 0.25}
        | {"drift": [0.0, 0.1, 0.3, 0.2], "reason": None},
        "selection_overlap": overlap | ({"real": 1.0} if null else {}),
        "per_class": {"classes": [{"label": "=licence", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "n": 12}]},
        "data_report": {"duplicates": 3, "leaked": 0, "warnings": ["3 of 9 training texts repeat an earlier one."]},
    }


def with_records(comparison: Comparison, records: list[Any]) -> Comparison:
    """`comparison` whose tuned models bring these records."""
    base, *tuned = comparison.provenance["models"]
    models = [base, *(facts | {"training": told} for facts, told in zip(tuned, records, strict=True))]
    return dataclasses.replace(comparison, provenance=comparison.provenance | {"models": models})
