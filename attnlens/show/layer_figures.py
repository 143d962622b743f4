"""Figures by layer: change of focus, change of entropy, and how far the maps moved apart."""

from collections.abc import Callable

from matplotlib.axes import Axes

from attnlens.analysis.results import Comparison
from attnlens.show import findings, plots
from attnlens.show.drawing import (
    Drawing,
    Layout,
    labels,
    margin,
    of_attention,
    of_documents,
    panels,
)
from attnlens.show.tables import entropy_table, jsd_table, tests_table

PROFILE = ["model", "salience", "layer", "estimate", "low", "high", "p_adjusted", "n"]


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures by layer that there are numbers for."""
    makers: list[tuple[str, Callable[[Comparison], Drawing]]] = [
        ("profile", layer_profile),
        ("entropy layer", entropy_profile),
        ("jsd layer", jsd_profile),
    ]
    return [make(comparison) for family, make in makers if tests_table(comparison, family)["estimate"].notna().any()]


def layer_profile(comparison: Comparison) -> Drawing:
    """The headline: change of focus per layer with its simultaneous band, a panel for each salience definition."""
    table = tests_table(comparison, "profile")[PROFILE]
    shown = table.assign(model=table["model"].map(labels(comparison.models)))

    def panel(ax: Axes, index: int) -> None:
        name = comparison.salience[index]
        plots.layer_profile(shown[shown["salience"] == name], ax, margin=margin(comparison))
        if len(comparison.salience) > 1:
            ax.set_title(f"marked words: {name}")

    caption = (
        "Change of focus, tuned minus base, by layer (mean over heads). Focus = attention on the marked words minus "
        "attention on position-matched ordinary words, in points of 100 spent on words. Bands: 95 %, simultaneous over "
        f"layers, over {of_documents(comparison, table)}. Dashed lines: ±{margin(comparison):g} points, the smallest "
        "change declared to matter; filled markers lie beyond it with their whole interval and have adjusted p < .05."
    )
    draw = panels(Layout(len(comparison.salience), 2.35, "layer", "change of focus (points)"), panel)
    return Drawing("layer_profile", "layers", findings.focus_finding(comparison), caption, table, draw)


def entropy_profile(comparison: Comparison) -> Drawing:
    """Change of the content entropy per layer, one line a model."""
    table = entropy_table(comparison)
    shown = table.assign(model=table["model"].map(labels(comparison.models)))
    floor = table["floor"].max()
    alone = f" and what rounding the weights alone makes (±{floor:.2g} points)" if floor > 0 else ""
    caption = (
        "Change of content entropy, tuned minus base, by layer (mean over heads): entropy of the attention on words as "
        "a percentage of its maximum, 0 = all on one word piece, 100 = spread evenly. Below zero: more concentrated. "
        f"Bands: 95 %, simultaneous over layers, over {of_documents(comparison, table)}. Filled markers: the band "
        f"leaves out zero{alone}, and adjusted p < .05."
    )
    draw = panels(Layout(1, 2.35, "layer", "change of entropy (points)"), lambda ax, _: plots.layer_profile(shown, ax))
    title = of_attention(comparison, table, findings.entropy_finding)
    return Drawing("entropy_profile", "layers", title, caption, table, draw)


def jsd_profile(comparison: Comparison) -> Drawing:
    """Divergence of base and tuned maps per layer, one line a model, in percent of its maximum."""
    table = jsd_table(comparison)
    shown = table.assign(model=table["model"].map(labels(comparison.models)))
    floor = table["floor"].max()
    alone = f" Rounding to the narrower stored number format alone makes {floor:.2g} %." if floor > 0 else ""
    caption = (
        "Jensen–Shannon divergence (JSD) between the attention rows of base and tuned, by layer (mean over rows and "
        "heads), in percent of its maximum, log 2: 0 = the same maps, 100 = no key in common. Bands: 95 %, "
        f"simultaneous over layers, over {of_documents(comparison, table)}. JSD is never below 0, so any two different "
        f"checkpoints differ: the null to hold it against is the JSD between two training seeds, not zero.{alone}"
    )
    draw = panels(Layout(1, 2.35, "layer", "JSD (% of its maximum)"), lambda ax, _: plots.layer_level(shown, ax))
    title = of_attention(comparison, table, findings.jsd_finding)
    return Drawing("jsd_profile", "layers", title, caption, table, draw)
