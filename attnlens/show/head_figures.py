"""Figures by head: change of focus and of entropy, and the heads that changed most."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.show import findings, map_plots, plots
from attnlens.show.drawing import Drawing, Layout, Picture, by_model, map_height, of_attention, of_documents, panels
from attnlens.show.tables import heads_table

SHOWN_HEADS = 10


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures by head that there are numbers for."""
    heads = heads_table(comparison)
    of_measure = [heads[heads["measure"] == measure] for measure in ("focus", "entropy_content")]
    found = [head_shift(comparison, rows) for rows in of_measure if rows["estimate"].notna().any()]
    tops = [top_changed(comparison, rows) for rows in of_measure if not most_changed(comparison, rows).empty]
    return [*found, *tops]


def most_changed(comparison: Comparison, heads: pd.DataFrame) -> pd.DataFrame:
    """The heads of the first tuned model that changed under the headline salience, the most changed first."""
    headline = (comparison.salience or [""])[0] if (heads["measure"] == "focus").all() else ""
    chosen = (heads["model"] == comparison.models[1]) & (heads["salience"] == headline)
    rows = heads[chosen & heads["shown"] & (heads["estimate"].fillna(0) != 0)]
    order = rows["estimate"].abs().sort_values(ascending=False, kind="stable").index
    return rows.loc[order].head(SHOWN_HEADS)


def head_shift(comparison: Comparison, heads: pd.DataFrame) -> Drawing:
    """Layer × head map of one measure's change under the headline salience, a panel for each tuned model."""
    focus = heads["measure"].iloc[0] == "focus"
    table = heads[heads["salience"] == heads["salience"].iloc[0]].drop(columns="measure")
    what = "focus on marked words" if focus else "concentration"
    change = (
        f"focus (attention on marked minus matched ordinary words; marked by {heads['salience'].iloc[0]})"
        if focus
        else "content entropy (percent of its maximum; below zero = more concentrated)"
    )
    caption = (
        f"Change of {change}, tuned minus base, for every head, in points. Dot: rise, ring: fall, with adjusted "
        f"p < .05 (false discovery rate over heads); over {of_documents(comparison, table)}. Grey cross: heads that "
        "give less than 5 % of their attention to words in either model."
    )
    title = of_attention(comparison, table[table["shown"]], lambda rows: findings.heads_finding(rows, what))
    name = "focus_heads" if focus else "entropy_heads"
    return Drawing(name, "heads", title, caption, table, PICTURES[name])


def _map_picture(unit: str) -> Picture:
    """Draws the table of `head_shift`."""

    def picture(table: pd.DataFrame) -> Callable[[float], Figure]:
        limit = float(table.loc[table["shown"], "estimate"].abs().max())
        limit = limit if limit > 0 else 1.0
        layout = Layout(
            table["model"].nunique(), map_height(int(table["layer"].max())), "head", "layer", bar=f"change of {unit}"
        )
        return panels(layout, by_model(table, lambda ax, rows: map_plots.head_map(rows, ax, limit=limit)))

    return picture


def top_changed(comparison: Comparison, heads: pd.DataFrame) -> Drawing:
    """The most changed heads of the first tuned model: base, tuned, change and its interval."""
    focus = heads["measure"].iloc[0] == "focus"
    table = most_changed(comparison, heads).drop(columns=["measure", "shown"]).reset_index(drop=True)
    what = "focus" if focus else "content entropy"
    model = f" of {comparison.models[1]}" if len(comparison.models) > 2 else ""
    caption = (
        f"The {len(table)} most changed heads{model} by {what}: base (ring), tuned (dot; orange = rise, blue = fall), "
        f"the change and its 95 % interval for this head alone, over {of_documents(comparison, table)}. The heads were "
        "picked because they changed most, so these changes are on the high side."
    )
    title = of_attention(comparison, table, lambda rows: findings.top_heads_finding(rows, what))
    name = "focus_top_heads" if focus else "entropy_top_heads"
    return Drawing(name, "heads", title, caption, table, PICTURES[name])


def _top_picture(unit: str) -> Picture:
    """Draws the table of `top_changed`."""

    def picture(table: pd.DataFrame) -> Callable[[float], Figure]:
        return panels(Layout(1, 0.55 + 0.21 * len(table), unit), lambda ax, _: plots.top_heads(table, ax))

    return picture


PICTURES = {
    "focus_heads": _map_picture("focus (points)"),
    "entropy_heads": _map_picture("entropy (points)"),
    "focus_top_heads": _top_picture("focus (points)"),
    "entropy_top_heads": _top_picture("content entropy (% of its maximum)"),
}
