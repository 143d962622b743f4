"""Figures of training, from what checkpoints tell: curves, chosen blocks, weights and gradients, attention."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.show import findings, plots, training_plots, training_words
from attnlens.show.drawing import TITLE, Drawing, Layout, Picture, labels, map_height, named, panels
from attnlens.show.training_records import QUALITIES, switching, text, training_records
from attnlens.show.training_tables import (
    attention_table,
    curves_table,
    gradient_table,
    movement_table,
    selection_table,
)
from attnlens.show.twins import kinds

DARKER = "The darker, the later the"
# Of what is drawn by depth: axis label, what is counted, whether the axis is logarithmic.
LINES = {
    "change": ("weight change (%)", "block", False),
    "gradient": ("gradient norm", "block", True),
    "entropy": ("entropy (nats)", "layer", False),
}


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures of training for which any model brings numbers."""
    makers: list[tuple[Callable[[Comparison], pd.DataFrame], Callable[[Comparison, pd.DataFrame], Drawing]]] = [
        (curves_table, training),
        (selection_table, selection),
        (movement_table, movement),
        (gradient_table, gradients),
        (attention_table, attention),
    ]
    tables = [(table(comparison), draw) for table, draw in makers]
    return [draw(comparison, table) for table, draw in tables if len(table)]


def training(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Loss over steps, on training and held-out data, and beside it the quality on held-out data."""
    quality = _quality(table)
    table = table.assign(kind=kinds(comparison, table["model"]))
    right = f" Right: held-out {QUALITIES[quality]}; the best step is the one that is kept." if quality else ""
    caption = (
        "Training of each tuned model. Loss in nats a prediction: line = training batches, pooled over neighbouring "
        f"steps; markers = held-out data.{right} One run a model: no interval."
    )
    title = findings.training_finding(comparison, training_records(comparison))
    return Drawing("training", "training", title, caption, table, training_picture)


def training_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `training`."""
    shown, quality = named(table), _quality(table)

    def panel(ax: Axes, index: int) -> None:
        if index == 0:
            plots.loss_curves(shown, ax)
            ax.set_ylabel("loss (nats)")
        else:
            plots.quality_curves(shown, ax, quality)
            ax.set_ylabel(f"held-out {QUALITIES[quality]}")

    return panels(Layout(2 if quality else 1, 2.1, "step", share=False), panel)


def _quality(table: pd.DataFrame) -> str:
    return next((name for name in QUALITIES if name in table and table[name].notna().any()), "")


def selection(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Which blocks trained when, and the scores they were chosen by; two panels for each model that chose."""
    models = list(table["model"].unique())
    records = training_records(comparison)
    told = {model: switching(records[model]) for model in models}
    used = {text(switched.score) for switched in told.values() if switched is not None} - {""}
    score = (
        f" Score: {findings.listed(sorted(used))} over the probes so far, in percent of the highest."
        if used and table["score"].notna().any()
        else ""
    )
    caption = (
        "Blocks of the model, counted from 1, over the steps of the training. Dark: the block trained; light: it was "
        "frozen and did not move; grey: a probe, in which all blocks are measured to choose among them. Blocks that "
        f"are never chosen get back the weights they had before the probe.{score} One run a model: no interval."
    )
    found = {model: training_words.selection_finding(each) for model, each in told.items() if each is not None}
    return Drawing("selection", "training", _told(comparison, found), caption, table, selection_picture)


def selection_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `selection`."""
    names = labels(table["model"].unique(), limit=TITLE)
    scored = {model for model in names if table.loc[table["model"] == model, "score"].notna().any()}
    shown = [(model, kind) for model in names for kind in ("active", "scores") if kind == "active" or model in scored]

    def panel(ax: Axes, index: int) -> None:
        model, kind = shown[index]
        rows = table[table["model"] == model]
        if kind == "active":
            training_plots.active_blocks(rows, ax)
            ax.set_xlabel("step")
            ax.set_title(names[model] if len(names) > 1 else "what trained when")
        else:
            training_plots.choice_scores(rows[rows["score"].notna()], ax)
            ax.set_xlabel("chosen after step")
            ax.set_title("score (●: chosen)")
        ax.set_ylabel("block")

    height = min(map_height(int(table["block"].max())), 2.6)
    return panels(Layout(len(shown), height, "", across=2 if scored else 1, share=False), panel)


def movement(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Weight change over the training by block, a panel for each model and part of a block."""
    caption = (
        "How far the weights of each block are from where they began, ‖W − W₀‖/‖W₀‖ in percent, at every step that was "
        f"watched, by part of the block. {DARKER} block; a level line is a block that was frozen, and one that falls "
        "back to 0 was probed and not chosen. No sampling is involved."
    )
    title = _each(comparison, table, training_words.movement_finding)
    return Drawing("weight_movement", "training", title, caption, table, PICTURES["weight_movement"])


def gradients(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Gradient norms by block over the training, a panel a model."""
    caption = (
        "Length of the gradient of each block at the steps that were watched, after clipping, as the optimizer sees "
        f"it; the axis is logarithmic. {DARKER} block; a line is broken where the block was frozen and had no "
        "gradient. Every value is that of one batch."
    )
    title = _each(comparison, table, training_words.gradient_finding)
    return Drawing("gradient_norms", "training", title, caption, table, PICTURES["gradient_norms"])


def attention(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Attention entropy of each layer on a fixed batch while training, a panel a model."""
    caption = (
        "Entropy of the attention rows in each layer, mean over heads and the rows of one fixed batch of held-out "
        f"texts, while the model trained. {DARKER} layer. One batch: no interval; what is tested stands under Layers."
    )
    title = _each(comparison, table, training_words.attention_finding)
    name = "attention_while_training"
    return Drawing(name, "training", title, caption, table, PICTURES[name])


def _lines_picture(column: str) -> Picture:
    """Draws the tables of `movement`, `gradients` and `attention`."""
    return lambda table: _lines(table.rename(columns={"layer": "block"}), column)


def _lines(table: pd.DataFrame, column: str) -> Callable[[float], Figure]:
    """Panels of lines by depth, one for each model and, where there are any, part."""
    names = labels(table["model"].unique(), limit=24)
    table = table if "part" in table else table.assign(part="")
    pairs = list(table[["model", "part"]].drop_duplicates().itertuples(index=False, name=None))
    parts = list(dict.fromkeys(name for _, name in pairs))
    unit, depth, log = LINES[column]
    deepest = int(table["block"].max())
    values = table[column].to_numpy(float)
    top, least = float(np.nanmax(values)), float(np.min(values, where=values > 0, initial=np.inf))
    limits = (least / 2, 2 * top) if log and top > 0 else (0.0, 1.05 * top or 1.0)

    def panel(ax: Axes, index: int) -> None:
        model, name = pairs[index]
        rows = table[(table["model"] == model) & (table["part"] == name)]
        training_plots.depth_lines(rows, ax, column, deepest=deepest, limits=limits)
        title = "\n".join(word for word in (names[model] if len(names) > 1 else "", name) if word)
        if title:
            ax.set_title(title)

    across = len(parts) if 1 < len(parts) <= 3 else 0
    return panels(Layout(len(pairs), 1.9, "step", unit, bar=depth, whole=True, across=across), panel)


def _each(comparison: Comparison, table: pd.DataFrame, finding: Callable[[pd.DataFrame], str]) -> str:
    """A finding of each model, named where there are several."""
    return _told(comparison, {str(model): finding(rows) for model, rows in table.groupby("model", sort=False)})


def _told(comparison: Comparison, found: dict[str, str]) -> str:
    """Findings with the models they are true of, where there are several."""
    if len(comparison.models) == 2:
        return _sentence(next(iter(found.values()), "nothing is known"))
    same = {finding: [model for model in found if found[model] == finding] for finding in found.values()}
    return _sentence("; ".join(f"{findings.listed(models)}: {finding}" for finding, models in same.items()))


def _sentence(words: str) -> str:
    """With a capital, unless a model's name stands first."""
    return words if ": " in words.split(";")[0] else f"{words[0].upper()}{words[1:]}"


PICTURES = {
    "training": training_picture,
    "selection": selection_picture,
    "weight_movement": _lines_picture("change"),
    "gradient_norms": _lines_picture("gradient"),
    "attention_while_training": _lines_picture("entropy"),
}
