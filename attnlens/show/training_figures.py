"""Training curves of the tuned models, where their checkpoints tell them."""

from matplotlib.axes import Axes

from attnlens.analysis.results import Comparison
from attnlens.show import findings, plots
from attnlens.show.drawing import Drawing, Layout, labels, panels
from attnlens.show.training_tables import curves_table, training_records

# What a run may have recorded of its held-out data: axis label, and the factor of the unit.
QUALITIES = {"macro_f1": "held-out macro-F1", "accuracy": "held-out accuracy", "perplexity": "held-out perplexity"}


def drawings(comparison: Comparison) -> list[Drawing]:
    """The training curves, if any model brings its history."""
    return [] if curves_table(comparison).empty else [training(comparison)]


def training(comparison: Comparison) -> Drawing:
    """Loss over steps, on training and held-out data, and beside it the quality on held-out data."""
    table = curves_table(comparison)
    shown = table.assign(model=table["model"].map(labels(comparison.models)))
    quality = next((name for name in QUALITIES if name in table and table[name].notna().any()), "")

    def panel(ax: Axes, index: int) -> None:
        if index == 0:
            plots.loss_curves(shown, ax)
            ax.set_ylabel("loss (nats)")
        else:
            plots.quality_curves(shown, ax, quality)
            ax.set_ylabel(QUALITIES[quality])

    right = f" Right: {QUALITIES[quality]}; the best step is the one that is kept." if quality else ""
    caption = (
        "Training of each tuned model. Loss in nats a prediction: line = training batches, pooled over neighbouring "
        f"steps; markers = held-out data.{right} One run a model: no interval."
    )
    title = findings.training_finding(comparison, training_records(comparison))
    draw = panels(Layout(2 if quality else 1, 2.1, "step", share=False), panel)
    return Drawing("training", "training", title, caption, table, draw)
