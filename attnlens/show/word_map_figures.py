"""Who looks at whom in one text, in base and tuned, for the heads that changed most: words, not word pieces."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlens.analysis.results import Comparison, Passage
from attnlens.analysis.wording import signed
from attnlens.show import map_plots
from attnlens.show.drawing import Drawing, Layout, drawable, labels, panels
from attnlens.show.head_figures import most_changed
from attnlens.show.tables import heads_table
from attnlens.show.word_figures import chosen_passage

SHOWN_HEADS, SHOWN_WORDS = 2, 16
LONGEST_WORD = 12  # characters beside a map


def drawings(comparison: Comparison) -> list[Drawing]:
    """The figure, where a text is kept with maps of a head that changed."""
    if not any(passage.maps is not None for passage in comparison.passages):
        return []
    passage, _ = chosen_passage(comparison)
    places = _places(comparison, passage)
    return [word_maps(comparison, passage, places)] if places else []


def _places(comparison: Comparison, passage: Passage) -> list[int]:
    """Which of the passage's maps are of the most changed heads of the first tuned model, the most changed first."""
    heads = heads_table(comparison)
    rows = most_changed(comparison, heads[heads["measure"] == ("focus" if comparison.salience else "entropy_content")])
    wanted = [(int(layer) - 1, int(head) - 1) for layer, head in zip(rows["layer"], rows["head"], strict=True)]
    known = passage.maps is not None and sum(passage.is_word) > 0
    return [passage.heads.index(head) for head in wanted if known and head in passage.heads][:SHOWN_HEADS]


def word_maps(comparison: Comparison, passage: Passage, places: list[int]) -> Drawing:
    """Maps of one text in base and first tuned model, a row of panels a head."""
    table = word_maps_table(comparison, passage, places)
    part = " (part of the text)" if table["looks_at"].nunique() < sum(passage.is_word) else ""
    marked = " Bold: marked words." if table["marked"].any() else ""
    model = f" of {comparison.models[1]}" if len(comparison.models) > 2 else ""
    caption = (
        f"Text {drawable(passage.id)}{part}: where each word (row) looks, in base and tuned, for the heads{model} that "
        "changed most over all texts. Columns are the same words by number; the darker, the more of the row's "
        "attention (mean over the word's pieces, summed over those of the word that is looked at; the scale is that of "
        "the square root, one for all maps; kept in 16 steps). What special tokens and punctuation receive is not "
        f"drawn.{marked} One text, an example for the eye."
    )
    return Drawing("word_maps", "heads", _finding(passage, places[0]), caption, table, word_maps_picture)


def _finding(passage: Passage, place: int) -> str:
    """What the most changed head gives to marked words of the whole text, else to the word that gained or lost most."""
    assert passage.maps is not None
    layer, head = passage.heads[place]
    where, count = f"In one text, layer {layer + 1}, head {head + 1}", passage.maps.words
    is_word = np.array(passage.is_word)
    marked, values = np.array(passage.marked)[is_word], 100 * passage.maps.values[:2, place, :count, :count]
    looked_at = np.nanmean(values, 1)  # (base and tuned, word): of a word's attention, in percent
    if marked.any():
        before, after = looked_at[:, marked].sum(1)
        return f"{where} gave {before:.0f} % of a word's attention to marked words, then {after:.0f} %"
    change = np.nan_to_num(looked_at[1] - looked_at[0])
    most = int(np.abs(change).argmax())
    piece = np.array(passage.words)[is_word][most]
    return f"{where} turned most towards or from “{piece}” ({signed(float(change[most]))} points a word)"


def word_maps_table(comparison: Comparison, passage: Passage, places: list[int]) -> pd.DataFrame:
    """One row for each head, model, word and word it looks at: their numbers in the text, attention in percent.

    piece, marked: of the word that is looked at. Of a long text the 16 words in a run that hold the largest change.
    """
    assert passage.maps is not None, "a passage without maps is not drawn"
    count = passage.maps.words
    values = 100 * passage.maps.values[:2, places, :count, :count]  # (base and tuned, head, word, word)
    change = np.nan_to_num(np.abs(values[1] - values[0])).sum((0, 1))
    start = max(0, min(int(change.argmax()) - SHOWN_WORDS // 2, count - SHOWN_WORDS))
    numbers = np.arange(start, min(start + SHOWN_WORDS, count))
    at = np.flatnonzero(passage.is_word)[numbers]
    pieces, marked = np.array(passage.words)[at], np.array(passage.marked)[at]
    size, frames = len(numbers), []
    for row, place in enumerate(places):
        layer, head = passage.heads[place]
        for index, model in enumerate(comparison.models[:2]):
            columns = {
                "layer": layer + 1,
                "head": head + 1,
                "model": model,
                "word": np.repeat(numbers + 1, size),
                "looks_at": np.tile(numbers + 1, size),
                "piece": np.tile(pieces, size),
                "marked": np.tile(marked, size),
                "attention": values[index, row][np.ix_(numbers, numbers)].ravel(),
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def word_maps_picture(table: pd.DataFrame) -> Callable[[float], Figure]:
    """Draws the table of `word_maps`."""
    keys = ["layer", "head", "model"]
    shown = list(table[keys].drop_duplicates().itertuples(index=False, name=None))
    names = labels(table["model"].unique(), limit=18)
    limit = float(table["attention"].max())
    table = table.assign(piece=table["piece"].map(_short))

    def panel(ax: Axes, index: int) -> None:
        layer, head, model = shown[index]
        rows = table[(table[keys] == [layer, head, model]).all(axis=1)]
        map_plots.word_map(rows, ax, limit=limit if limit > 0 else 1.0)
        ax.set_title(f"layer {layer}, head {head}\n{names[model]}")

    height = 0.75 + 0.135 * table["word"].nunique()
    return panels(Layout(len(shown), height, "number of the word", bar="attention (%)", across=2), panel)


def _short(piece: str) -> str:
    text = drawable(" ".join(piece.split()))
    return text if len(text) <= LONGEST_WORD else f"{text[: LONGEST_WORD - 1]}…"


PICTURES = {"word_maps": word_maps_picture}
