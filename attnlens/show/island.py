"""The texts and their maps as data for the script of a page: JSON that cannot end its element, the maps packed."""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from attnlens.analysis.passages import head_tests, top_heads
from attnlens.analysis.results import Comparison, Passage
from attnlens.analysis.word_maps import WordMaps
from attnlens.show.plots import SIGNIFICANT
from attnlens.show.word_figures import is_causal

ROOM = 3_000_000  # characters that the maps of all texts may take in a report of at most 5 MB


def island(comparison: Comparison, passages: Sequence[Passage], room: float = ROOM) -> Markup:
    """`passages` for the script; attention received in hundredths of a percent.

    room: characters for packed maps. Each text may take its part of what the texts before it left; where all its maps
    need more it keeps those of a long text, else none, and the page says so.
    """
    changed = [_changed(comparison, model) for model in comparison.models[1:]]
    few = set(top_heads(comparison.tests, comparison.models[1]))
    shown = []
    for number, passage in enumerate(passages):
        kept, packed = _fitting(passage, few, room / (len(passages) - number))
        room -= len(packed)
        shown.append(_passage(passage) | {"kept": kept, "packed": packed})
    content = {
        "models": comparison.models,
        "causal": is_causal(comparison),
        "start": 1 + (comparison.answer.layers or (comparison.data.sizes["layer"] - 1,))[0],  # the most changed layer
        "changed": changed,
        "passages": shown,
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _fitting(passage: Passage, few: set[tuple[int, int]], room: float) -> tuple[list[int], str]:
    """Places of the maps that find room, and these maps packed: all, or layer means and `few` heads, or none."""
    if passage.maps is None:
        return [], ""
    every = list(range(len(passage.heads)))
    for kept in (every, [place for place in every if passage.heads[place][1] < 0 or passage.heads[place] in few]):
        if len(packed := pack(passage.maps, kept)) <= room:
            return kept, packed
    return [], ""


def pack(maps: WordMaps, places: Sequence[int]) -> str:
    """Scales (two bytes each, the low one first), then levels, two a byte, the first in the low bits; zlib, base64.

    Levels of tuned models are kept as differences from the base, modulo 16: where tuning changed nothing they are 0.
    """
    levels = maps.levels[:, places]
    levels = np.concatenate([levels[:1], (levels[1:] - levels[:1]) & 15]).ravel()
    levels = np.append(levels, np.zeros(levels.size % 2, np.uint8))
    content = maps.scales[places].astype("<u2").tobytes() + (levels[::2] | levels[1::2] << 4).tobytes()
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _passage(passage: Passage) -> dict[str, Any]:
    is_word = np.array(passage.is_word, dtype=bool)
    received = np.round(100 * np.asarray(passage.received, dtype=float)[..., is_word])
    return {
        "id": passage.id,
        "label": passage.label,
        "words": list(passage.words),
        "isWord": [int(flag) for flag in passage.is_word],
        "marked": [int(flag) for flag in passage.marked],
        "maps": [[int(layer) + 1, int(head) + 1] for layer, head in passage.heads],  # head 0: mean over the heads
        "received": [
            [[None if np.isnan(value) else int(value) for value in row] for row in model] for model in received
        ],
        "stored": passage.maps is not None,
        "outside": [] if passage.maps is None else list(passage.maps.outside),
        "silent": [] if passage.maps is None else list(passage.maps.silent),
    }


def _changed(comparison: Comparison, model: str) -> dict[str, Any]:
    """The heads of a tuned model that changed: by their test, or those that changed most where none has passed it."""
    rows = head_tests(comparison.tests, model)
    passed = rows[rows["p_adjusted"] < SIGNIFICANT]
    pairs = list(zip(passed["layer"], passed["head"], strict=True)) or top_heads(comparison.tests, model)
    return {"heads": [[int(layer) + 1, int(head) + 1] for layer, head in pairs], "tested": len(passed) > 0}
