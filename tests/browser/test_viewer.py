"""Words in their text, in a browser: what is pointed at, chosen and filtered shows the numbers that were stored."""

import dataclasses
import re
from collections.abc import Iterator
from html import unescape

import numpy as np
import pytest
from playwright.sync_api import Locator, Page

from attnlens.analysis.results import Comparison, Passage
from attnlens.show import report as floor
from attnlens.show.view import view
from tests.browser.conftest import Opening, serious
from tests.show.synthetic import make_comparison

HOSTILE = '</script><script>document.title="owned"</script> "quotes" & \'more\' $x$ שלום עולם 🙂 <img src=x>'
TUNED = ('<b onclick="x">&', "lora")
BACKGROUND = "node => getComputedStyle(node).backgroundColor"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Texts: as they come, hostile, three more, one of which no map was kept."""
    made = make_comparison(tuned=TUNED)
    hostile = dataclasses.replace(make_comparison(tuned=TUNED, texts=(HOSTILE,)).passages[0], label="<i>label</i>")
    bare = dataclasses.replace(made.passages[3], maps=None)
    tests = made.tests.copy()
    tests.loc[(tests["layer"] == 4) & (tests["head"] == 9), "p_adjusted"] = 0.2
    return dataclasses.replace(made, passages=(made.passages[0], hostile, made.passages[2], bare), tests=tests)


@pytest.fixture(scope="module")
def address(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report without figures, which take seconds."""
    folder = tmp_path_factory.mktemp("viewer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(floor, "figure_set", lambda comparison: [])
        (folder / "report.html").write_text(floor.page(comparison, folder))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(opening: Opening, address: str) -> Iterator[Page]:
    with opening(address) as page:
        page.wait_for_selector("#words[data-ready]")
        yield page


def choose(page: Page, text: int, place: tuple[int, int], model: int = 1) -> None:
    """A text, a map as (layer, head) from 0 (head −1: the mean), a tuned model from 1."""
    page.select_option("#passage", str(text))
    for name, value in (("model", model), ("layer", place[0] + 1), ("head", place[1] + 1)):
        page.select_option(f"#{name}", str(value))


def ready(page: Page, passage: Passage) -> None:
    page.wait_for_selector(f"#words[data-ready='{passage.id}']")


def names(passage: Passage) -> list[str]:
    words = [word for word, flag in zip(passage.words, passage.is_word, strict=True) if flag]
    return [*words, *(passage.maps.outside if passage.maps else ())]


def signed(value: float) -> str:
    text = f"{abs(value):.1f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def slack(passage: Passage, model: int, at: int, word: int) -> np.ndarray:
    """By how much the change of each unit may be off, in percent: half a level, in base and in tuned."""
    assert passage.maps is not None
    scales = passage.maps.scales[at].repeat((passage.maps.words, len(passage.maps.outside))) / 65535
    levels = passage.maps.levels[[0, model], at, word].astype(float)
    return 100 * scales * (levels + 0.25).sum(0) / 225


def steps(page: Page | Locator, pane: str) -> list[int]:
    """Signed colour of each unit of a pane."""
    classes = page.locator(f"#{pane}-units .w").evaluate_all("nodes => nodes.map((node) => node.className)")
    found = [re.search(r"\b([ab])(\d)\b", name) for name in classes]
    return [int(match[2]) * (1 if match[1] == "a" else -1) for match in found if match]


def colours(values: np.ndarray, words: int) -> list[int]:
    top = np.abs(values[:words]).max() or np.inf  # where nothing is sure nothing has a colour
    sizes = np.minimum(9, np.ceil(9 * np.sqrt(np.abs(values) / top) - 0.5)).astype(int)
    return (np.where(values < 0, -1, 1) * sizes).tolist()


@pytest.mark.parametrize(("place", "model"), [((0, -1), 1), ((5, 7), 2)])
def test_pointing_at_a_word_shows_where_it_looks(opened: Page, comparison: Comparison, place, model):
    passage = comparison.passages[2]
    assert passage.maps is not None
    choose(opened, 2, place, model)
    ready(opened, passage)
    word, other, at = 3, 6, passage.heads.index(place)
    values = 100 * passage.maps.values[:, at, word]
    opened.click(f"#tuned-text .w >> nth={word}")
    for pane, row in (("base", values[0]), ("tuned", values[model])):
        top = max(values[0][: passage.maps.words].max(), values[model][: passage.maps.words].max())
        expected = np.minimum(9, np.ceil(9 * np.sqrt(row / top) - 0.5)).astype(int).tolist()
        assert steps(opened, pane) == expected
        special = opened.locator(f"#{pane}-outside .w").all_inner_texts()
        assert special == [f"{name} {row[i - 3]:.1f}" for i, name in enumerate(passage.maps.outside)]
    change, off = values[model] - values[0], slack(passage, model, at, word)
    sure = np.where(np.abs(change) <= off, 0.0, change)
    assert steps(opened, "change") == colours(sure, passage.maps.words)
    assert (sure != change).any() and (model == 1 or sure.any())
    opened.hover(f"#base-text .w >> nth={other}")
    told = f"base {values[0][other]:.1f} %, tuned {values[model][other]:.1f} %, change {signed(change[other])}"
    told += f" ± {off[other]:.1f} points"
    source, target = names(passage)[word], names(passage)[other]
    assert opened.inner_text("#readout") == f"“{source}” looks at “{target}”: {told}."
    most = np.lexsort((-np.abs(change), -np.abs(sure)))[0]
    row = opened.locator("#changed tbody tr >> nth=0 >> td").all_inner_texts()
    told = [f"{values[0][most]:.1f}", f"{values[model][most]:.1f}", f"{signed(change[most])} ± {off[most]:.1f}"]
    assert row == [names(passage)[most], *told]


def test_without_a_pointer_words_show_what_they_receive(opened: Page, comparison: Comparison):
    passage = comparison.passages[0]
    choose(opened, 0, (4, -1), 2)
    ready(opened, passage)
    received = np.round(100 * passage.received[[0, 2], 4][:, np.array(passage.is_word)]) / 100
    top = received.max()
    for pane, values in zip(("base", "tuned"), received, strict=True):
        expected = np.ceil(9 * np.sqrt(values / top) - 0.5).astype(int).tolist()
        assert steps(opened, pane)[: len(values)] == expected and max(expected) > 4
    marked = received[:, [flag for flag, word in zip(passage.marked, passage.is_word, strict=True) if word]].sum(-1)
    assert f"{marked[0]:.1f} % of the attention on words in base, {marked[1]:.1f} % in" in opened.inner_text("#sums")
    assert opened.inner_text("#tuned-name") == "lora" and opened.inner_text("#base-high") == f"{top:.1f} %"
    strongest, weakest = (
        opened.locator("#base-text .w").nth(int(i)) for i in (received[0].argmax(), received[0].argmin())
    )
    assert strongest.evaluate(BACKGROUND) != weakest.evaluate(BACKGROUND)
    under = opened.locator("#base-text .marked").all_inner_texts()
    assert under == [word for word, flag in zip(passage.words, passage.marked, strict=True) if flag]


def test_pointing_moves_the_maps_and_leaving_brings_back_what_is_received(opened: Page):
    before = steps(opened, "base")
    opened.hover("#base-text .w >> nth=2")
    assert steps(opened, "base") != before and opened.locator(".here").count() == 3
    assert "changed most towards" in opened.inner_text("#readout")
    opened.hover("h2 >> nth=0")
    assert steps(opened, "base") == before and opened.locator(".here, .pinned").count() == 0


def test_a_click_keeps_a_word_and_escape_lets_go(opened: Page):
    before = steps(opened, "change")
    opened.click("#change-text .w >> nth=4")
    opened.hover("h2 >> nth=0")
    kept = steps(opened, "change")
    assert kept != before and opened.locator(".pinned").count() == 3
    opened.keyboard.press("Escape")
    assert steps(opened, "change") == before
    opened.click("#change-text .w >> nth=4")
    opened.click("#change-text .w >> nth=4")
    assert opened.locator(".pinned").count() == 0


def test_keys_do_what_the_pointer_does(opened: Page, comparison: Comparison):
    passage = comparison.passages[0]
    words = names(passage)
    opened.focus("#base-units")
    for key, word in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0)):
        opened.keyboard.press(key)
        assert f"“{words[word]}” changed most" in opened.inner_text("#readout")
        assert opened.locator(".here").count() == 3, "the same word in all panes"
    opened.keyboard.press("Enter")
    for _ in words:
        opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#readout").startswith(f"“{words[0]}” looks at “{words[-1]}”")
    opened.keyboard.press("Escape")
    assert opened.inner_text("#readout").startswith(f"“{words[-1]}” changed most")
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "tuned-units"
    assert opened.inner_text("#readout").startswith("Point at a word")


def test_the_filter_leaves_the_heads_that_changed(opened: Page, comparison: Comparison):
    choose(opened, 0, (0, -1))
    tests = comparison.tests
    mine = (tests["family"] == "focus head") & (tests["model"] == TUNED[0]) & (tests["salience"] == "spans")
    passed = tests[mine & (tests["p_adjusted"] < 0.05)]
    changed = set(zip(passed["layer"], passed["head"], strict=True)) & set(comparison.passages[0].heads)
    assert 0 < len(changed) < len(comparison.passages[0].heads) - 6, "more than the means are left out"
    opened.check("#changed-only")
    assert opened.inner_text("#changed-text") == f"changed heads only ({len(changed)} with adjusted p < .05)"
    offered = set()
    for layer in opened.locator("#layer option").all_inner_texts():
        opened.select_option("#layer", layer)
        offered |= {(int(layer) - 1, int(head) - 1) for head in opened.locator("#head option").all_inner_texts()}
    assert offered == changed
    opened.uncheck("#changed-only")
    assert opened.locator("#layer option").count() == 6


def test_layer_and_head_are_kept_from_text_to_text(opened: Page):
    choose(opened, 0, (3, 1))
    opened.select_option("#passage", "2")
    assert (opened.input_value("#layer"), opened.input_value("#head")) == ("4", "2")
    opened.select_option("#layer", "1")
    assert opened.input_value("#head") == "0", "the first layer has no single head: its mean"


def test_a_text_without_maps_says_so(opened: Page, comparison: Comparison):
    opened.select_option("#passage", "3")
    before = steps(opened, "base")
    opened.hover("#base-text .w >> nth=1")
    assert opened.inner_text("#note") == "Where words look was not kept for this text."
    assert "receives: base" in opened.inner_text("#readout") and steps(opened, "base") == before


def test_hostile_text_is_shown_as_text(opened: Page):
    choose(opened, 1, (0, -1))
    for pane in ("base", "tuned", "change"):
        assert opened.inner_text(f"#{pane}-text") == HOSTILE
    assert opened.inner_text("#passage option >> nth=1").endswith("<i>label</i>")
    assert "owned" not in opened.title()
    assert opened.locator("#words img, #words i, #words .text b, #words script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_window_and_keeps_nobody_out(opening: Opening, address: str, scheme: str):
    with opening(address, viewport={"width": 400, "height": 800}, color_scheme=scheme) as page:
        page.wait_for_selector("#words[data-ready]")
        page.click("#base-text .w >> nth=3")
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert serious(page) == []
        ink, ground = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor].map((colour) => "
            "colour.match(/\\d+/g).map(Number).reduce((a, b) => a + b))"
        )
        assert (ink > ground) == (scheme == "dark")


def test_paper_says_what_is_shown(opened: Page, comparison: Comparison):
    passage = comparison.passages[0]
    choose(opened, 0, (5, 7))
    ready(opened, passage)
    assert opened.locator("#where").is_hidden()
    opened.click("#base-text .w >> nth=0")
    opened.emulate_media(media="print")
    assert opened.inner_text("#where") == f"Text {passage.id}, layer 6, head 8: where “{names(passage)[0]}” looks."
    assert opened.locator(".controls").is_hidden()


# What VS Code allows the page of a notebook's outputs, as far as we know: it was not read from its source.
EDITOR = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("policy", ["", EDITOR], ids=["notebook", "editor"])
def test_views_work_in_their_frames(opening: Opening, comparison: Comparison, tmp_path, policy: str):
    """Two in one notebook page, each with its own script and policy."""
    frames = [view(comparison, number)._repr_html_() for number in (0, 1)]
    head = f'<meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{policy}"><title>n</title>'
    (tmp_path / "notebook.html").write_text(f"<!doctype html>{head}{''.join(frames)}")
    with opening((tmp_path / "notebook.html").as_uri(), viewport={"width": 900, "height": 1000}) as page:
        for number, passage in enumerate((comparison.passages[0], comparison.passages[1])):
            assert passage.maps is not None
            frame = page.frame_locator(f"iframe >> nth={number}")
            frame.locator("#words[data-ready]").wait_for()
            assert frame.locator("#passage-label").is_hidden()
            frame.locator("#layer").select_option("1")
            frame.locator("#base-text .w >> nth=1").click()
            frame.locator("#tuned-text .w >> nth=2").hover()
            values = 100 * passage.maps.values[:, 0, 1, 2]
            told = f"“{names(passage)[1]}” looks at “{names(passage)[2]}”: "
            told += f"base {values[0]:.1f} %, tuned {values[1]:.1f} %, change "
            assert frame.locator("#readout").inner_text().startswith(told)
            assert frame.locator("#base-text").inner_text() == "".join(passage.words)
            inside = page.frames[1 + number]
            assert inside.evaluate("document.documentElement.scrollWidth") <= 900
            own = re.search(r'Content-Security-Policy" content="([^"]*)"', view(comparison, number).page)
            assert own and "script-src 'sha256-" in unescape(own[1]) and "unsafe" not in own[1]
