"""Draws speed.csv, which `tests/bench/bench_peers.py --write` leaves: what the statistics cost with each tool.

Left: time over that of the model's plain pass. Right: memory beyond the model's own. Against the length of the text.
Usage: python figures/speed.py
"""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from attnlens.show.drawing import WIDE, style

TABLE = Path(__file__).parent / "speed.csv"
NAMES = {
    "plain": "plain pass",
    "attnlens": "attnlens",
    "eager": "eager + output_attentions",
    "nnsight": "nnsight",
    "transformer-lens": "TransformerLens",
    "inseq": "inseq (one row only)",
}
COLOURS = ("0.55", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
MARKS = ("", "o", "s", "^", "D", "v")


def drawn(table: pd.DataFrame) -> Figure:
    """Both panels; time in units of the plain pass of the same length."""
    plain = table[table["way"] == "plain"].set_index("tokens")["seconds"]
    figure = Figure(figsize=(WIDE, 2.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for (way, name), colour, mark in zip(NAMES.items(), COLOURS, MARKS, strict=True):
        rows = table[table["way"] == way].sort_values("tokens")
        line = {"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.4, "label": name}
        time.plot(rows["tokens"], rows["seconds"].to_numpy() / plain.loc[rows["tokens"]].to_numpy(), **line)
        memory.plot(rows["tokens"], rows["extra_mib"], **line)
    time.set_ylabel("time ÷ plain pass")
    memory.set_ylabel("memory beside the model (MiB)")
    for ax in (time, memory):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sorted(table["tokens"].unique()))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("tokens of the text")
        ax.spines[["top", "right"]].set_visible(False)
    time.set_yticks([1, 2, 5, 10])
    figure.legend(*time.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Write speed.pdf and speed.png beside the numbers."""
    with matplotlib.rc_context(style()):
        figure = drawn(pd.read_csv(TABLE))
        figure.savefig(TABLE.with_suffix(".pdf"), metadata={"CreationDate": None})
        figure.savefig(TABLE.with_suffix(".png"))


if __name__ == "__main__":
    main()
