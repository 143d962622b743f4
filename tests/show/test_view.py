"""The data of the viewer: what is packed can be read back, what does not fit stays out, what is hostile stays text."""

import base64
import dataclasses
import json
import re
import zlib
from html import unescape

import numpy as np
import pytest

from attnlens.analysis.passages import top_heads
from attnlens.analysis.results import Comparison
from attnlens.analysis.word_maps import WordMaps
from attnlens.core.errors import AttnlensError
from attnlens.show.island import island, pack
from attnlens.show.view import view
from tests.show.synthetic import make_comparison


def unpacked(packed: str, models: int, maps: int, units: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels and scales, by the words of `pack` alone."""
    content = zlib.decompress(base64.b64decode(packed))
    scales = np.frombuffer(content[: 4 * maps], "<u2").reshape(maps, 2)
    pairs = np.frombuffer(content[4 * maps :], np.uint8)
    levels = np.stack([pairs % 16, pairs // 16], -1).ravel()[: models * maps * units * units]
    levels = levels.reshape(models, maps, units, units).astype(int)
    levels[1:] = (levels[1:] + levels[:1]) % 16
    return levels, scales


@pytest.mark.parametrize("units", [4, 5])
def test_what_is_packed_can_be_read_back(units: int):
    rng = np.random.default_rng(units)
    levels = rng.integers(0, 16, size=(3, 5, units, units)).astype(np.uint8)
    maps = WordMaps(("[CLS]",), (), levels, rng.integers(0, 65536, size=(5, 2)).astype(np.uint16))
    for places in ([0, 1, 2, 3, 4], [3, 1]):
        got, scales = unpacked(pack(maps, places), 3, len(places), units)
        np.testing.assert_array_equal(got, levels[:, places])
        np.testing.assert_array_equal(scales, maps.scales[places])


def test_what_has_no_room_stays_out(comparison: Comparison):
    """All maps, else layer means and changed heads, else none; each text takes its part of what is left."""
    passages = comparison.passages[:3]
    sizes = [len(pack(passage.maps, range(len(passage.heads)))) for passage in passages if passage.maps]

    def kept(room: float) -> list[int]:
        shown = json.loads(str(island(comparison, passages, room)))["passages"]
        assert all(bool(text["packed"]) == bool(text["kept"]) and text["stored"] for text in shown)
        return [len(text["kept"]) for text in shown]

    every = len(passages[0].heads)
    assert kept(float("inf")) == kept(3 * max(sizes)) == [every] * 3
    assert json.loads(str(island(comparison, passages)))["changed"][0]["tested"]
    few = 6 + len(set(top_heads(comparison.tests, comparison.models[1])) & set(passages[0].heads))
    assert few < every and few in (fewer := kept(3 * max(sizes) * 0.9)) and set(fewer) <= {few, every}
    assert kept(0) == [0, 0, 0]


def test_where_no_head_passes_its_test_those_that_changed_most_are_named(comparison: Comparison):
    untested = dataclasses.replace(comparison, tests=comparison.tests.assign(p_adjusted=0.5))
    changed = json.loads(str(island(untested, comparison.passages[:1])))["changed"][0]
    tests = comparison.tests
    rows = tests[(tests["family"] == "focus head") & (tests["salience"] == "spans")]
    largest = rows.assign(size=rows["estimate"].abs()).nlargest(8, "size")
    assert not changed["tested"]
    assert changed["heads"] == [
        [layer + 1, head + 1] for layer, head in zip(largest["layer"], largest["head"], strict=True)
    ]


def test_a_view_is_one_frame_of_one_page(comparison: Comparison):
    shown = view(comparison, 2)
    frame = shown._repr_html_()
    assert re.fullmatch(r'<iframe srcdoc="[^"<>]*" title="[^"<>]*" [^<>]*></iframe>', frame)
    source = re.search(r'srcdoc="([^"]*)"', frame)
    assert source and unescape(source[1]) == shown.page
    content = json.loads(re.search(r'id="passages">(.*?)</script>', shown.page, re.S)[1])  # pyright: ignore[reportOptionalSubscript]
    assert [text["id"] for text in content["passages"]] == ["text-002"]
    assert (
        repr(shown) == "text-002: all-MiniLM-L6-v2 and minilm-contracts: to be seen in a notebook; `.page` is the HTML"
    )
    assert not re.findall(r"https?://", shown.page)


def test_hostile_names_stay_text():
    hostile = make_comparison(tuned=('"><script>1</script>',), texts=("</script> \" ' <b> & \u2028",))
    shown = view(hostile)
    assert shown.page.count("<script") == 2 and "\u2028" not in shown.page
    assert "<script" not in shown._repr_html_()


@pytest.mark.parametrize("example", [-1, 8])
def test_a_text_that_is_not_there_is_refused(comparison: Comparison, example: int):
    with pytest.raises(
        AttnlensError, match=rf"example must lie in 0 … 7, the texts this comparison keeps; got {example}"
    ):
        view(comparison, example)


def test_without_texts_there_is_nothing_to_view(comparison: Comparison):
    with pytest.raises(AttnlensError, match="keeps no text"):
        view(dataclasses.replace(comparison, passages=()))
