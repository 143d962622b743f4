"""Figures of what stands beside the answer: other definitions, controls, agreement of attention, the knockout."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.analysis.wording import digits_of
from attnlens.show import evidence_plots, findings, plots
from attnlens.show.control_tables import (
    EXPLAINED,
    agreement_table,
    controls_table,
    definitions_table,
    reliance_table,
)
from attnlens.show.drawing import Drawing, Layout, by_model, margin, named, of_attention, of_documents, panels


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures that there are numbers for."""
    if not comparison.salience:
        return []
    several = definitions_table(comparison)
    found = [definitions(comparison, several)] if several["label"].nunique() > 1 else []
    if {"share_matched", "share_random", "share_swapped"} <= set(comparison.data):
        table = controls_table(comparison)
        found += [controls(comparison, table)] if table["estimate"].notna().any() else []
    scores = agreement_table(comparison)
    found += [agreement(comparison, scores)] if scores["estimate"].notna().any() else []
    relied = reliance_table(comparison)
    return [*found, reliance(comparison, relied)] if len(relied) else found


def definitions(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Change of focus in one layer under every definition of the words that matter, a row a definition and model."""
    layer = int(table["layer"].iloc[0])
    caption = (
        f"Change of focus in layer {layer}, the layer of the headline, under every definition of the words that "
        "matter: tuned minus base, mean over heads, in points of 100 spent on words, with 95 % intervals simultaneous "
        f"over layers, over {of_documents(comparison, table)}. Dashed lines: ±{margin(comparison):g} points, the "
        "smallest change declared to matter; filled markers lie beyond it and have adjusted p < .05."
        f"{findings.null_words(comparison)} The layer was chosen under {comparison.salience[0]}, so that the other "
        "definitions are the fairer test."
    )
    title = of_attention(comparison, table, findings.definitions_finding)
    return Drawing("definitions", "layers", title, caption, table, definitions_picture)


def definitions_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `definitions`."""
    shown, level = named(table), float(table["margin"].iloc[0])
    layout = Layout(1, evidence_plots.forest_height(table), "change of focus (points)")
    return panels(layout, lambda ax, _: evidence_plots.forest(shown, ax, margin=level))


def controls(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Change of the share on marked words, beside matched, random and swapped words, a panel for each tuned model."""
    matched = (
        f"{EXPLAINED}: the share that a regression on these leaves to the marked words, for want of matched words"
        if (table["words"] == EXPLAINED).any()
        else "matched words: unmarked ones of like position, length and frequency (C1)"
    )
    weighted = (
        " By value vectors: attention times the length of what the head passes on, α‖f(x)‖, in place of attention "
        "alone, over all marked words."
        if table["words"].str.contains("value").any()
        else ""
    )
    caption = (
        f"Change of the share of attention on words, tuned minus base, by layer (mean over heads), in points. Marked "
        f"words: those marked by {comparison.salience[0]} that have a control. {matched[0].upper()}{matched[1:]}. "
        "Placebos, grey: as many random words of the same text (C2), and the marks of another document's text put onto "
        f"this one (C3).{weighted} Bands: 95 %, simultaneous over layers, over {of_documents(comparison, table)}; "
        "filled markers leave out zero. Marked less matched words is the change of focus, which is what is tested."
    )
    title = of_attention(comparison, table, findings.controls_finding)
    return Drawing("controls", "words", title, caption, table, controls_picture)


def controls_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `controls`."""
    layout = Layout(table["model"].nunique(), 2.5, "layer", "change of share (points)")
    return panels(layout, by_model(table, _control_lines))


def _control_lines(ax: Axes, rows: pd.DataFrame) -> None:
    plots.layer_change(rows.drop(columns="model").rename(columns={"words": "model"}), ax)


def agreement(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """How well the attention that words receive picks out the marked ones, in base and tuned, a panel a score."""
    caption = (
        f"How well the attention that a word piece receives picks out the words marked by {comparison.salience[0]} "
        "from the other words of the text, by layer (mean over heads). AUROC: chance that a marked piece receives more "
        "than another one (dashed: .5, no better than chance). Average precision; precision at k: share of marked "
        "pieces among the k that receive most, k their number; by chance both are the share of marked pieces. Filled "
        "markers: the change against the base has a 95 % band, simultaneous over layers, that leaves out zero; over "
        f"{of_documents(comparison, table)}.{findings.null_words(comparison)}"
    )
    tuned = table[table["kind"] != "base"]
    title = of_attention(comparison, tuned, findings.agreement_finding)
    return Drawing("agreement", "words", title, caption, table, agreement_picture)


def agreement_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `agreement`."""
    shown = named(table)
    measures = list(table["measure"].unique())

    def panel(ax: Axes, index: int) -> None:
        chance = 0.5 if measures[index] == "AUROC" else None
        plots.layer_score(shown[shown["measure"] == measures[index]], ax, chance=chance)
        ax.set_ylabel(f"{measures[index]} (0 to 1)")

    return panels(Layout(len(measures), 2.2, "layer", share=False), panel)


def reliance(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """The causal companion: what the outputs lose without the marked words, a row for each question and model."""
    told = comparison.data["reliance"].attrs if "reliance" in comparison.data else {}
    outcome, unit = str(told.get("outcome", "outcome")), str(told.get("unit", ""))
    table = table.assign(unit=f"{outcome} ({unit})" if unit else outcome)
    known = table["n"].dropna()
    several = f"{known.min():.0f}–{known.max():.0f}" if known.nunique() > 1 else f"{known.max():.0f}"
    caption = (
        f"What hiding the words marked by {comparison.salience[0]} from all attention does to the {outcome}, less what "
        f"hiding as many ordinary words does ({told.get('draws', 4)} draws of controls); below, the same less that of "
        f"the base. Units: {unit or outcome}. Lines: 95 % intervals over n = {several} documents with words that could "
        "be hidden; filled markers: the interval lies above zero and p < .05. The outputs rely on these words, and "
        f"more than before, where both do.{findings.null_words(comparison)}"
    )
    title = of_attention(comparison, table, findings.reliance_finding)
    return Drawing("reliance", "words", title, caption, table, reliance_picture)


def reliance_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `reliance`."""
    shown = named(table)
    digits = max(2, digits_of(table["estimate"].abs().max()))
    layout = Layout(1, evidence_plots.forest_height(table), f"change of the {table['unit'].iloc[0]}")
    return panels(layout, lambda ax, _: evidence_plots.forest(shown, ax, digits=digits))


PICTURES = {
    "definitions": definitions_picture,
    "controls": controls_picture,
    "agreement": agreement_picture,
    "reliance": reliance_picture,
}
