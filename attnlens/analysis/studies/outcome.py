"""What a study found: a row a cell, arms with intervals over seeds and texts, pairs of arms, answers, selections."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.results import Answer
from attnlens.analysis.studies.cells import ROW, Cell, Plan
from attnlens.analysis.studies.focus import Focus, focus_of, told
from attnlens.analysis.studies.quality import arms_quality, of_documents, pairs_quality, ranks, test_values
from attnlens.analysis.studies.selections import selections
from attnlens.checkpoints.seal import read_facts

# Of a training record: column → where it stands.
FACTS = {
    "trained": ("accounting", "mean", "of_total"),
    "trained_of_blocks": ("accounting", "mean", "of_blocks"),
    "peak_trained": ("accounting", "peak", "of_total"),
    "changed": ("accounting", "cumulative", "of_total"),
    "seconds": ("cost", "seconds"),
    "flops": ("cost", "flops"),
    "peak_memory": ("cost", "peak_memory"),
    "checkpoint_bytes": ("cost", "checkpoint_bytes"),
    "loss_before": ("forgetting", "loss_before"),
    "loss_after": ("forgetting", "loss_after"),
    "kl": ("forgetting", "kl"),
    "best_step": ("metrics", "best_step"),
}
COSTS = ("trained", "trained_of_blocks", "peak_trained", "changed", "seconds", "flops", "peak_memory", "forgetting")


@dataclass(frozen=True, repr=False)
class StudyOutcome:
    """A study, as far as its cells are finished. Every table has the columns model and data.

    cells: one row a finished cell: arm, method, seed, learning_rate, at_edge (the grid's best rate is its first or
    last), test scores, costs, forgetting, and of each definition of salience the verdict with the largest layer's
    change in points. arms: one row an arm over its seeds: quality with interval (level B), against the reference
    (level C: difference, interval, p, verdict), means of costs. pairs: differences of every two arms, paired by seed.
    profiles: change of focus by layer: families seeds, beyond null, against rival, and profile. ranks: each arm's place
    by seed. selections: what methods that choose blocks chose. answers: by (model, data), then arm: of the headline
    salience. failed: cells that failed, with the reason.
    """

    plan: Plan
    cells: pd.DataFrame
    arms: pd.DataFrame
    pairs: pd.DataFrame
    profiles: pd.DataFrame
    ranks: pd.DataFrame
    selections: pd.DataFrame
    answers: dict[tuple[str, str], dict[str, Answer]]
    failed: dict[Cell, str]

    @property
    def planned(self) -> int:
        """How many cells the study has."""
        return self.plan.size

    def __repr__(self) -> str:
        """How far it is, and the arms."""
        head = f"{self.plan.file.title}: {len(self.cells)} of {self.planned} cells, {len(self.failed)} failed"
        shown = ["model", "data", "arm", "seeds", "quality", "low", "high", "trained", "verdict"]
        return f"{head}\n{self.arms[shown].to_string(index=False) if len(self.arms) else ''}"


def outcome(plan: Plan, failed: dict[Cell, str] | None = None) -> StudyOutcome:
    """Gather the finished cells of a study and test what they show; nothing is run."""
    rows = {cell: row for cell in plan.cells() if (row := read_facts(plan.folder / cell.path / ROW)) is not None}
    cells = pd.DataFrame([cell_row(plan, cell, row) for cell, row in rows.items()])
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in ("arms", "pairs", "profiles", "ranks", "selections")}
    answers = dict[tuple[str, str], dict[str, Answer]]()
    for model in plan.file.models:
        for data in plan.file.data:
            mine = {cell: row for cell, row in rows.items() if (cell.model, cell.data) == (model.name, data.name)}
            if not mine:
                continue
            found = _of_line(plan, mine, cells)
            answers[model.name, data.name] = found.pop("answers")
            for name, table in found.items():
                tables[name].append(table.assign(model=model.name, data=data.name))
    whole = {name: pd.concat(some, ignore_index=True) if some else pd.DataFrame() for name, some in tables.items()}
    return StudyOutcome(plan, cells, **whole, answers=answers, failed=dict(failed or {}))


def _of_line(plan: Plan, rows: dict[Cell, dict[str, Any]], cells: pd.DataFrame) -> dict[str, Any]:
    """Tables and answers of one model and data set."""
    order = [arm.name for arm in plan.file.arms if any(cell.arm == arm.name for cell in rows)]
    values = test_values(plan, rows)
    focus = focus_of(plan, rows)
    reference = plan.file.held_against
    arms = arms_quality(values, order, reference, plan.file.margin)
    some = next(iter(rows))
    mine = cells[(cells["model"] == some.model) & (cells["data"] == some.data)]
    costs = mine.groupby("arm", sort=False)[[name for name in (*COSTS, "drift", "macro_f1") if name in mine]].mean()
    arms = arms.merge(costs.reset_index(), on="arm", how="left").merge(_totals(focus), on="arm", how="left")
    arms["verdict_focus"] = [focus.answers[arm].verdict if arm in focus.answers else "" for arm in arms["arm"]]
    return {
        "arms": arms,
        "pairs": pairs_quality(values, focus.totals, order),
        "profiles": focus.profiles,
        "ranks": ranks(values, order),
        "selections": selections(rows),
        "answers": focus.answers,
    }


def _totals(focus: Focus) -> pd.DataFrame:
    """Of each arm the change of focus in the layer where it is largest, in points, with its interval (`told`)."""
    columns = ["arm", "focus_layer", "focus", "focus_low", "focus_high"]
    if focus.profiles.empty:
        return pd.DataFrame(columns=columns)
    seeds = told(focus.profiles)
    sizes = seeds["estimate"].abs().dropna()
    largest = seeds.loc[sizes.groupby(seeds["arm"]).idxmax()]
    points = 100 * largest[["estimate", "low", "high"]]
    table = pd.concat([largest["arm"], 1 + largest["layer"].astype(int), points], axis=1)
    return table.set_axis(columns, axis=1)


def cell_row(plan: Plan, cell: Cell, row: dict[str, Any]) -> dict[str, Any]:
    """One line of cells.csv: shares in percent, forgetting in nats a token, drift relative, focus in points.

    quality: mean over test documents of accuracy or loss, as in the table of arms; accuracy, macro_f1 and loss are over
    texts.
    """
    record, test = row["record"], row["test"] or {}
    rates = plan.arm(cell.arm).rates
    found: dict[str, Any] = {name: getattr(cell, name) for name in ("model", "data", "arm", "seed")}
    found |= {
        "method": record.get("method"),
        "learning_rate": record.get("learning_rate"),
        "at_edge": len(rates) > 1 and cell.rate in (min(filter(None, rates)), max(filter(None, rates))),
        "quality": float(np.nanmean(of_documents(plan, cell))) if test else None,
        **{name: test.get(name) for name in ("accuracy", "macro_f1", "loss", "perplexity") if name in test},
        "texts": test.get("texts"),
        "held_out": (record.get("metrics") or {}).get("macro_f1"),
    }
    found |= {name: _entry(record, place) for name, place in FACTS.items()}
    for name in ("trained", "trained_of_blocks", "peak_trained", "changed"):
        found[name] = None if found[name] is None else 100 * found[name]
    before, after = found.pop("loss_before"), found.pop("loss_after")
    found["forgetting"] = None if before is None or after is None else after - before
    drift = _entry(record, ("forgetting", "drift"))
    found["drift"] = drift[-1] if drift else None
    found["null_accuracy"] = (row["twin"] or {}).get("accuracy")
    for salience, focus in row["focus"].items():
        names = ("verdict", "layer", "estimate", "low", "high")
        found |= {f"focus_{salience}_{name}": focus.get(name) for name in names}
    return found | {"threads": row["threads"], "device": row["device"]}


def _entry(record: dict[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = record
    for name in place:
        found = found.get(name) if isinstance(found, dict) else None
    return found
