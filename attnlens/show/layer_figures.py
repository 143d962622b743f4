"""Figures by layer: change of focus, change of entropy, and how far the maps moved apart."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison
from attnlens.analysis.wording import signed
from attnlens.show import findings, plots
from attnlens.show.drawing import Drawing, Layout, margin, named, of_attention, of_documents, panels
from attnlens.show.tables import entropy_table, jsd_table, seeds_jsd_table, tests_table
from attnlens.show.twins import kinds

SEEDS = "seeds of"  # how the line between seeds of a model's training is called
WIDEST = 3.0  # times the range of another panel: then each has its own axis
PROFILE = ["model", "kind", "salience", "layer", "estimate", "low", "high", "p_adjusted", "n"]


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures by layer that there are numbers for."""
    makers: list[tuple[str, Callable[[Comparison], Drawing]]] = [
        ("profile", layer_profile),
        ("entropy layer", entropy_profile),
        ("jsd layer", jsd_profile),
    ]
    return [make(comparison) for family, make in makers if tests_table(comparison, family)["estimate"].notna().any()]


def layer_profile(comparison: Comparison) -> Drawing:
    """The headline: change of focus per layer with its simultaneous band, a panel for each salience definition.

    Twins are drawn as nulls; the noise band, where it was measured, as an area.
    """
    noise = tests_table(comparison, "noise band").assign(kind="noise")
    measured = tests_table(comparison, "profile")
    measured = measured.assign(kind=kinds(comparison, measured["model"]))
    tables = [table[PROFILE] for table in (measured, noise) if len(table)]
    table = pd.concat(tables, ignore_index=True).assign(margin=margin(comparison))
    caption = (
        "Change of focus, tuned minus base, by layer (mean over heads). Focus = attention on the marked words minus "
        "attention on position-matched ordinary words, in points of 100 spent on words. Bands: 95 %, simultaneous over "
        f"layers, over {of_documents(comparison, measured)}. Dashed lines: ±{margin(comparison):g} points, the "
        "smallest change declared to matter; filled markers lie beyond it with their whole interval and have adjusted "
        f"p < .05.{findings.null_words(comparison)}{_noise_words(noise)}{_beyond_null(comparison)}"
        f"{_over_seeds(comparison)}{'' if _alike(table) else ' The axes differ.'}"
    )
    title = findings.focus_finding(comparison)
    return Drawing("layer_profile", "layers", title, caption, table, profile_picture)


def profile_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `layer_profile`."""
    shown = named(table)
    saliences = list(table["salience"].unique())

    def panel(ax: Axes, index: int) -> None:
        rows = shown[shown["salience"] == saliences[index]]
        plots.layer_profile(rows, ax, margin=float(table["margin"].iloc[0]))
        if len(saliences) > 1:
            ax.set_title(f"marked words: {saliences[index]}")

    unit = "change of focus (points)"
    if _alike(table):
        return panels(Layout(len(saliences), 2.35, "layer", unit), panel)

    def own(ax: Axes, index: int) -> None:
        panel(ax, index)
        ax.set_ylabel(unit)

    return panels(Layout(len(saliences), 2.35, "layer", share=False), own)


def _alike(table: pd.DataFrame) -> bool:
    """Whether one axis shows every definition: none has bands so wide that others look flat beside them."""
    sizes = table[["estimate", "low", "high"]].abs().max(axis=1).groupby(table["salience"]).max()
    return bool(sizes.max() <= WIDEST * sizes.min())


def entropy_profile(comparison: Comparison) -> Drawing:
    """Change of the content entropy per layer, one line a model."""
    table = entropy_table(comparison)
    table = table.assign(kind=kinds(comparison, table["model"]))
    floor = table["floor"].max()
    alone = f" and what rounding the weights alone makes (±{floor:.2g} points)" if floor > 0 else ""
    caption = (
        "Change of content entropy, tuned minus base, by layer (mean over heads): entropy of the attention on words as "
        "a percentage of its maximum, 0 = all on one word piece, 100 = spread evenly. Below zero: more concentrated. "
        f"Bands: 95 %, simultaneous over layers, over {of_documents(comparison, table)}. Filled markers: the band "
        f"leaves out zero{alone}, and adjusted p < .05.{findings.null_words(comparison)}"
    )
    title = of_attention(comparison, table, findings.entropy_finding)
    return Drawing("entropy_profile", "layers", title, caption, table, entropy_picture)


def entropy_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `entropy_profile`."""
    layout = Layout(1, 2.35, "layer", "change of entropy (points)")
    return panels(layout, lambda ax, _: plots.layer_profile(named(table), ax))


def jsd_profile(comparison: Comparison) -> Drawing:
    """Divergence of base and tuned maps per layer, one line a model, in percent of its maximum; that between seeds."""
    measured, seeds = jsd_table(comparison), seeds_jsd_table(comparison)
    measured = measured.assign(kind=kinds(comparison, measured["model"]))
    seeds = seeds.assign(kind="null", model=[f"{SEEDS} {model}" for model in seeds["model"]])
    table = pd.concat([measured, seeds], ignore_index=True) if len(seeds) else measured
    floor = table["floor"].max()
    alone = f" Rounding to the narrower stored number format alone makes {floor:.2g} %." if floor > 0 else ""
    caption = (
        "Jensen–Shannon divergence (JSD) between the attention rows of base and tuned, by layer (mean over rows and "
        "heads), in percent of its maximum, log 2: 0 = the same maps, 100 = no key in common. Bands: 95 %, "
        f"simultaneous over layers, over {of_documents(comparison, measured)}. JSD is never below 0, so any two "
        "different checkpoints differ: the null to hold it against is the JSD between two training seeds, not zero."
        f"{_seeds_words(comparison)}{alone}{findings.null_words(comparison)}"
    )
    title = of_attention(comparison, measured, findings.jsd_finding)
    return Drawing("jsd_profile", "layers", title, caption, table, jsd_picture)


def jsd_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `jsd_profile`."""
    layout = Layout(1, 2.35, "layer", "JSD (% of its maximum)")
    return panels(layout, lambda ax, _: plots.layer_level(named(table), ax))


def _seeds_words(comparison: Comparison) -> str:
    rows = tests_table(comparison, "jsd seeds")
    if rows.empty:
        return ""
    runs = ", ".join(str(number) for number in sorted(set(rows["n_seeds"].astype(int))))
    return (
        f" Grey, dashed: the JSD between the run shown and other seeds of its training ({runs} runs), mean over them."
    )


def _noise_words(noise: pd.DataFrame) -> str:
    if noise.empty:
        return ""
    draws = int(noise["n_seeds"].max())
    return (
        f" Light grey: least and largest change over {draws} draws of random weights, each as large as the tuning's "
        "own change; to be seen, not a test."
    )


def _beyond_null(comparison: Comparison) -> str:
    """Where the headline's change differs from that of its twin, by the test of their difference."""
    rows = tests_table(comparison, "beyond null")
    rows = rows[(rows["model"] == comparison.models[1]) & (rows["salience"] == comparison.salience[0])]
    if rows["low"].isna().all():
        return ""
    found = rows[plots.detected(rows)]
    where = f"in {findings.layers_named(found['layer'])}" if len(found) else "in no layer"
    return f" {_of_first(comparison)}differs from its null {where}, tested on the difference, simultaneous over layers."


def _over_seeds(comparison: Comparison) -> str:
    """The most changed layer of the headline over training seeds."""
    rows = tests_table(comparison, "seeds")
    rows = rows[(rows["model"] == comparison.models[1]) & (rows["salience"] == comparison.salience[0])]
    if rows["low"].isna().all():
        return ""
    top = findings.most_moved(rows, "estimate")
    return (
        f" Over {top['n_seeds']:.0f} seeds of this training and {top['n']:.0f} documents: {signed(top['estimate'])} "
        f"(95 % {signed(top['low'])} … {signed(top['high'])}, for all layers together) in layer {top['layer']}."
    )


def _of_first(comparison: Comparison) -> str:
    return f"By {comparison.salience[0]}, {comparison.models[1]} "


PICTURES = {"layer_profile": profile_picture, "entropy_profile": entropy_picture, "jsd_profile": jsd_picture}
