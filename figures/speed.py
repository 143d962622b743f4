"""Draws what the benches left: speed.csv (bench_peers.py), record.csv (bench_record.py) and diff.csv (bench_diff.py).

speed: what the statistics cost with each tool, against the length of the text; left time over that of the model's plain
pass, right memory beyond the model's own. record: the same of our own ways. diff: seconds and memory of each way.
Usage: python figures/speed.py
"""

from functools import partial
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from attnlens.show.drawing import WIDE, style

FOLDER = Path(__file__).parent
TOOLS = {
    "plain": "plain pass",
    "attnlens": "attnlens",
    "eager": "eager + output_attentions",
    "nnsight": "nnsight",
    "transformer-lens": "TransformerLens",
    "inseq": "inseq (one row only)",
}
WAYS = {
    "plain": "plain pass",
    "least": "largest weight alone",
    "lean": "entropy, masses, λ, max, Σp²",
    "tiled": "… and share of content",
    "exact": "beside the model's own attention",
    "compared": "… received, JSD of two models",
    "eager": "eager + output_attentions",
}
STEPS = {
    "cold read": "reading only, from disk",
    "cold norms": "norms, from disk",
    "read": "reading only, from memory",
    "norms": "norms, from memory",
    "none": "norms and heads",
    "estimated": "norms, heads, spectra",
    "modeldelta": "modeldelta",
}
CAPTIONS = {
    "speed": "Cost of attention statistics (entropy, three group masses, largest weight, Σp² of every row and head; "
    "attnlens also λ) of a GPT-2-small-shaped model with random weights, one text, one thread: time over that of the "
    "plain forward pass of the same length, and peak memory beyond that of the loaded model. TransformerLens 4.3 runs "
    "its language-model head as well; inseq 0.7 gives one row of each head; nnsight 0.8.",
    "record": "The same for attnlens' own ways, batches of 2,048 tokens or one longer text, one thread: the largest "
    "weight alone, which is what a softmax in tiles takes before any other statistic; the commonest statistics; the "
    "share of content with them; statistics beside the model's unchanged attention; and two models with received "
    "attention and Jensen–Shannon divergence (per model).",
    "diff": "Two Llama-shaped checkpoints of 1.1 billion bfloat16 weights, 4.4 GB on disk, two cores: seconds and peak "
    "memory of whole commands, imports included. Spectra are estimated, each with its stated error; modeldelta 0.4.4 "
    "decomposes every matrix.",
}
FLOORS = {"plain": ("0.55", ""), "least": ("0.7", ".")}  # colour and mark of what there is to be held against
COLOURS, MARKS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"), ("o", "s", "^", "D", "v")


def by_length(table: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Time in units of the plain pass of the same length, and memory, both on logarithmic axes."""
    table = table[table["threads"] == 1]
    plain = table[table["way"] == "plain"].set_index("tokens")["seconds"]
    figure = Figure(figsize=(WIDE, 2.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    looks = iter(zip(COLOURS, MARKS, strict=True))
    for way, name in names.items():
        colour, mark = FLOORS.get(way) or next(looks)
        rows = table[table["way"] == way].sort_values("tokens")
        line = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.4, "label": name}
        time.plot(rows["tokens"], rows["seconds"].to_numpy() / plain.loc[rows["tokens"]].to_numpy(), **line)
        memory.plot(rows["tokens"], rows["extra_mib"], **line)
    time.set_ylabel("time ÷ plain pass")
    memory.set_ylabel("memory beside the model (MiB)")
    for ax in (time, memory):
        ax.set(xscale="log", yscale="log", xlabel="tokens of the text")
        ax.set_xticks(sorted(table["tokens"].unique()))
        tidy(ax)
    for ax, ticks in ((time, (1, 1.25, 1.5, 2, 3, 5, 10)), (memory, (20, 50, 100, 200, 500, 1000, 2000, 5000, 10000))):
        low, high = ax.get_ylim()
        ax.set_yticks([tick for tick in ticks if low <= tick <= high])
    figure.legend(*time.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def by_way(table: pd.DataFrame) -> Figure:
    """Seconds and peak memory, a row for each way."""
    table = table.set_index("way")
    ways = [way for way in STEPS if way in table.index]
    figure = Figure(figsize=(WIDE, 2.2), layout="constrained")
    for ax, column, label in zip(
        figure.subplots(1, 2, sharey=True), ("seconds", "peak_mib"), ("seconds", "peak memory (MiB)"), strict=True
    ):
        values = table.loc[ways, column]
        places = range(len(ways))
        ax.hlines(places, 0, values, color="0.85", linewidth=1)  # lengths mean nothing where the axis has no zero
        ax.scatter(values, places, color=["0.55" if "read" in way else COLOURS[0] for way in ways], s=22, zorder=3)
        for place, value in zip(places, values, strict=True):
            text = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            ax.annotate(text, (value, place), (6, 0), textcoords="offset points", va="center")
        ax.set_yticks(places, [STEPS[way] for way in ways])
        ax.set(xscale="log", xlabel=label)
        ax.set_xlim(right=values.max() * 3)
        tidy(ax)
    figure.axes[0].invert_yaxis()  # the other panel shares it
    return figure


def tidy(ax: Axes) -> None:
    """Plain numbers on logarithmic axes."""
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Write each figure as PDF and PNG, and its caption, beside its numbers; tables that are not there are left out."""
    drawn = {"speed": partial(by_length, names=TOOLS), "record": partial(by_length, names=WAYS), "diff": by_way}
    for name, draw in drawn.items():
        path = FOLDER / f"{name}.csv"
        if path.is_file():
            with matplotlib.rc_context(style()):
                figure = draw(pd.read_csv(path))
                figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
                figure.savefig(path.with_suffix(".png"))
            path.with_suffix(".txt").write_text(CAPTIONS[name] + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
