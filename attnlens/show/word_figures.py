"""Figures of words: attention that marked words receive, why their share moved, and one text as the models read it."""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison, Passage
from attnlens.show import findings, plots
from attnlens.show.drawing import Drawing, Layout, by_model, drawable, named, of_attention, of_documents, panels
from attnlens.show.text_plot import text_blocks
from attnlens.show.word_tables import received_table, refocusing_table

SHOWN_WORDS = 60


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figures of words that there are numbers for."""
    found = []
    if comparison.salience and "received" in comparison.data:
        table = received_table(comparison)
        found += [received(comparison, table)] if table["change"].notna().any() else []
    if comparison.salience and "mass" in comparison.data:
        table = refocusing_table(comparison)
        found += [] if table.empty else [refocusing(comparison, table)]
    seen = any(np.isfinite(np.asarray(passage.received, dtype=float)).any() for passage in comparison.passages)
    return [*found, passage_text(comparison)] if seen else found


def received(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Attention that marked and matched ordinary words receive, base → tuned, a panel for each tuned model."""
    known = table[table["model"] == table.loc[table["change"].notna(), "model"].iloc[0]]
    top = findings.most_moved(known, "change")
    of_model = f" of {top['model']}" if table["model"].nunique() > 1 else ""
    caption = (
        f"Attention that a word receives from the measured rows, by layer (mean over heads), base (hollow) and tuned "
        f"(filled): words marked by {comparison.salience[0]} and their matched ordinary words. 1 = what uniform "
        f"attention would give. Change of the difference in layer {top['layer']}{of_model}: "
        f"{plots.signed(top['change'], 2)} ({_interval(top)}), over {of_documents(comparison, table)}."
    )
    title = of_attention(comparison, table, findings.received_finding)
    return Drawing("received_profile", "words", title, caption, table, received_picture)


def received_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `received`."""
    limit = 1.08 * max(1.0, float(np.nanmax(table.filter(regex="_(base|tuned)$"))))
    layout = Layout(table["model"].nunique(), 2.35, "layer", "received attention (× uniform)")
    return panels(layout, by_model(table, lambda ax, rows: plots.received_pairs(rows, ax, limit=limit)))


def _interval(row: pd.Series) -> str:
    if pd.isna(row["low"]):
        return "too few documents for an interval"
    return f"95 % {plots.signed(row['low'], 2)} … {plots.signed(row['high'], 2)}, simultaneous over layers"


def refocusing(comparison: Comparison, table: pd.DataFrame) -> Drawing:
    """Every head in the plane of refocusing against sink release, a panel for each tuned model."""
    caption = (
        f"Why the attention on marked words (by {comparison.salience[0]}) moved, one dot a head, in points of all "
        "attention. Up: refocusing, a larger part G of the attention on words goes to the marked ones, (1−m)·ΔG with "
        "m the attention on special tokens and G the mean attention on the marked words of a text over that on all its "
        "words. Right: sink release, attention leaves the special tokens and falls on all words, −G·Δm. The factors "
        "that do not change sides are means of base and tuned, so the two add up exactly to the change; above the "
        "dashed line it is a rise. Means over texts and documents; "
        f"no test of single heads; {of_documents(comparison, table)}."
    )
    title = of_attention(comparison, table, findings.refocusing_finding)
    return Drawing("refocusing", "words", title, caption, table, refocusing_picture)


def refocusing_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `refocusing`."""
    limits = plots.plane_limits(table)
    count = table["model"].nunique()
    layout = Layout(count, 2.5, "sink release (points)", "refocusing (points)", bar="layer", whole=True)
    return panels(layout, by_model(table, lambda ax, rows: plots.plane(rows, ax, limits=limits)))


def passage_text(comparison: Comparison) -> Drawing:
    """One text, each word coloured by the attention it receives, in base and every tuned model."""
    passage, place = chosen_passage(comparison)
    layer, head = passage.heads[place]
    causal = is_causal(comparison)
    unit = "position-corrected attention on words" if causal else "attention on words"
    table = passage_table(comparison, passage, place).assign(unit=unit)
    where = f"layer {layer + 1}, {'mean of heads' if head < 0 else f'head {head + 1}'}"
    marked = " Underlined: the marked words." if table["marked"].any() else ""
    corrected = (
        " Position-corrected: counted against uniform attention, since in this model later words see the earlier ones "
        "and not the reverse; the share of attention in the answer is not corrected in this way."
        if causal
        else ""
    )
    part = " (part of the text)" if table["position"].nunique() < len(passage.words) else ""
    caption = (
        f"Text {drawable(passage.id)}{part}, {where}: the darker a word, the more of the {unit} it receives (word "
        f"pieces added up; one scale for all models).{marked}{corrected} One text, an example for the eye."
    )
    title = findings.passage_finding(table, comparison.models, where, unit)
    return Drawing("passage", "words", title, caption, table, passage_picture)


def passage_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `passage_text`."""
    shown = named(table).assign(piece=table["piece"].map(_one_line))
    return lambda width: text_blocks(shown, width, str(table["unit"].iloc[0]))


def is_causal(comparison: Comparison) -> bool:
    """Whether the measured model reads from left to right."""
    return bool((comparison.data["stack"] == "decoder").any())


def chosen_passage(comparison: Comparison) -> tuple[Passage, int]:
    """The shortest text with marked words (else the shortest) that has a dozen words, and its map to show.

    The map: mean of heads in the layer of the answer, else the last layer.
    """

    def order(passage: Passage) -> tuple[bool, bool, int]:
        words = sum(passage.is_word)
        return any(passage.marked) != any(any(other.marked) for other in comparison.passages), words < 12, words

    passage = min(comparison.passages, key=order)
    layer = (comparison.answer.layers or (comparison.data.sizes["layer"] - 1,))[0]
    return passage, passage.heads.index((layer, -1)) if (layer, -1) in passage.heads else 0


def passage_table(comparison: Comparison, passage: Passage, place: int) -> pd.DataFrame:
    """One row for each model and piece of text: position, piece, is_word, marked, received (%); long texts in part.

    The part: at most 60 words around the word that changed most in the first tuned model.
    """
    values = passage.received[:, place]
    words = np.flatnonzero(passage.is_word)
    centre = int(np.nanargmax(np.nan_to_num(np.abs(values[1] - values[0]))[words]))
    first = max(0, min(centre - SHOWN_WORDS // 2, len(words) - SHOWN_WORDS))
    last = min(first + SHOWN_WORDS, len(words))
    start = 0 if first == 0 else words[first]
    stop = len(passage.words) if last == len(words) else words[last]
    part = slice(start, stop)
    pieces = pd.DataFrame(
        {
            "position": np.arange(start, stop) + 1,
            "piece": passage.words[part],
            "is_word": passage.is_word[part],
            "marked": passage.marked[part],
        }
    )
    rows = [
        pieces.assign(model=name, received=np.where(pieces["is_word"], values[index][part], np.nan))
        for index, name in enumerate(comparison.models)
    ]
    return pd.concat(rows, ignore_index=True)[["model", "position", "piece", "is_word", "marked", "received"]]


def _one_line(piece: str) -> str:
    return drawable(re.sub(r"\s+", " ", piece))


PICTURES = {"received_profile": received_picture, "refocusing": refocusing_picture, "passage": passage_picture}
