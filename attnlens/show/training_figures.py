"""Figures of training, from what checkpoints tell: curves, chosen blocks, weights and gradients, attention."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from attnlens.analysis.results import Comparison
from attnlens.show import findings, plots, training_plots, training_words
from attnlens.show.drawing import TITLE, Drawing, Layout, labels, map_height, panels
from attnlens.show.training_records import QUALITIES, switching, text, training_records
from attnlens.show.training_tables import (
    attention_table,
    curves_table,
    gradient_table,
    movement_table,
    selection_table,
)

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
    shown = table.assign(model=table["model"].map(labels(comparison.models)))
    quality = next((name for name in QUALITIES if name in table and table[name].notna().any()), "")

    def panel(ax: Axes, index: int) -> None:
        if index == 0:
            plots.loss_curves(shown, ax)
            ax.set_ylabel("loss (nats)")
        else:
            plots.quality_curves(shown, ax, quality)
            ax.set_ylabel(f"held-out {QUALITIES[quality]}")

    right = f" Right: held-out {QUALITIES[quality]}; the best step is the one that is kept." if quality else ""
    caption = (
        "Training of each tuned model. Loss in nats a prediction: line = training batches, pooled over neighbouring "
        f"steps; markers = held-out data.{right} One run a model: no interval."
    )
    title = findings.training_finding(comparison, training_records(comparison))
    draw = panels(Layout(2 if quality else 1, 2.1, "step", share=False), panel)
    return Drawing("training", "training", title, caption, table, draw)


def selection(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Which blocks trained when, and the scores they were chosen by; two panels for each model that chose."""
    names = labels(comparison.models, limit=TITLE)
    models = list(table["model"].unique())
    several = len(comparison.models) > 2
    scored = {model for model in models if table.loc[table["model"] == model, "score"].notna().any()}
    shown = [(model, kind) for model in models for kind in ("active", "scores") if kind == "active" or model in scored]

    def panel(ax: Axes, index: int) -> None:
        model, kind = shown[index]
        rows = table[table["model"] == model]
        if kind == "active":
            training_plots.active_blocks(rows, ax)
            ax.set_xlabel("step")
            ax.set_title(names[model] if several else "what trained when")
        else:
            training_plots.choice_scores(rows[rows["score"].notna()], ax)
            ax.set_xlabel("chosen after step")
            ax.set_title("score (●: chosen)")
        ax.set_ylabel("block")

    records = training_records(comparison)
    told = {model: switching(records[model]) for model in models}
    used = {text(switched.score) for switched in told.values() if switched is not None} - {""}
    score = (
        f" Score: {findings.listed(sorted(used))} over the probes so far, in percent of the highest."
        if used and scored
        else ""
    )
    caption = (
        "Blocks of the model, counted from 1, over the steps of the training. Dark: the block trained; light: it was "
        "frozen and did not move; grey: a probe, in which all blocks are measured to choose among them. Blocks that "
        f"are never chosen get back the weights they had before the probe.{score} One run a model: no interval."
    )
    found = {model: training_words.selection_finding(each) for model, each in told.items() if each is not None}
    height = min(map_height(int(table["block"].max())), 2.6)
    columns = 2 if scored else 1
    draw = panels(Layout(len(shown), height, "", across=columns, share=False), panel)
    return Drawing("selection", "training", _told(comparison, found), caption, table, draw)


def movement(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Weight change over the training by block, a panel for each model and part of a block."""
    pairs = list(table[["model", "part"]].drop_duplicates().itertuples(index=False, name=None))
    caption = (
        "How far the weights of each block are from where they began, ‖W − W₀‖/‖W₀‖ in percent, at every step that was "
        f"watched, by part of the block. {DARKER} block; a level line is a block that was frozen, and one that falls "
        "back to 0 was probed and not chosen. No sampling is involved."
    )
    title = _each(comparison, table, training_words.movement_finding)
    draw = _lines(comparison, table, pairs, "change")
    return Drawing("weight_movement", "training", title, caption, table, draw)


def gradients(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Gradient norms by block over the training, a panel a model."""
    pairs = [(model, "") for model in table["model"].unique()]
    caption = (
        "Length of the gradient of each block at the steps that were watched, after clipping, as the optimizer sees "
        f"it; the axis is logarithmic. {DARKER} block; a line is broken where the block was frozen and had no "
        "gradient. Every value is that of one batch."
    )
    title = _each(comparison, table, training_words.gradient_finding)
    draw = _lines(comparison, table, pairs, "gradient")
    return Drawing("gradient_norms", "training", title, caption, table, draw)


def attention(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Attention entropy of each layer on a fixed batch while training, a panel a model."""
    pairs = [(model, "") for model in table["model"].unique()]
    caption = (
        "Entropy of the attention rows in each layer, mean over heads and the rows of one fixed batch of held-out "
        f"texts, while the model trained. {DARKER} layer. One batch: no interval; what is tested stands under Layers."
    )
    title = _each(comparison, table, training_words.attention_finding)
    shown = table.rename(columns={"layer": "block"})
    draw = _lines(comparison, shown, pairs, "entropy")
    return Drawing("attention_while_training", "training", title, caption, table, draw)


def _lines(comparison: Comparison, table: pd.DataFrame, pairs: list[tuple[str, str]], column: str):
    """Panels of lines by depth, one for each (model, part)."""
    names = labels(comparison.models, limit=24)
    several = len(comparison.models) > 2
    parts = list(dict.fromkeys(name for _, name in pairs))
    unit, depth, log = LINES[column]
    deepest = int(table["block"].max())
    values = table[column].to_numpy(float)
    top, least = float(np.nanmax(values)), float(np.min(values, where=values > 0, initial=np.inf))
    limits = (least / 2, 2 * top) if log and top > 0 else (0.0, 1.05 * top or 1.0)

    def panel(ax: Axes, index: int) -> None:
        model, name = pairs[index]
        rows = table[table["model"] == model]
        rows = rows[rows["part"] == name] if name else rows
        training_plots.depth_lines(rows, ax, column, deepest=deepest, limits=limits)
        title = "\n".join(word for word in (names[model] if several else "", name) if word)
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
