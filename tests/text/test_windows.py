"""Windows around spans: where they lie, what becomes of spans, and which rows are kept by label."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from attnlens.checkpoints.load import read_tokenizer
from attnlens.core.errors import CorpusError
from attnlens.text.corpus import Corpus, Example, Span, read_corpus
from attnlens.text.embedded import embedded
from attnlens.text.windows import commonest, labelled, windowed


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    """A token a word, between a first and a last one."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def corpus(*examples: Example) -> Corpus:
    return Corpus(examples, "some.jsonl", "0" * 64, has_documents=False)


def example(text: str, *spans: tuple[str, str | None], label: str | None = None) -> Example:
    """Spans by their words."""
    found = tuple(Span(text.index(words), text.index(words) + len(words), name) for words, name in spans)
    return Example(text, "1", "1", label, found)


def cut(text: str, *spans: tuple[str, str | None], label: str | None = None, tokens: int, tokenizer) -> Example:
    return windowed(corpus(example(text, *spans, label=label)), tokenizer, tokens).examples[0]


TEN = "a0 b1 c2 d3 e4 f5 g6 h7 i8 j9"


def test_a_window_by_hand(words: PreTrainedTokenizerBase):
    """Five tokens are three words beside the two special tokens: one before the middle of the span, one behind."""
    found = cut(TEN, ("e4", None), tokens=5, tokenizer=words)
    assert found.text == "d3 e4 f5" and found.spans == (Span(3, 5),)
    even = cut(TEN, ("e4", None), tokens=6, tokenizer=words)
    assert even.text == "c2 d3 e4 f5"


@pytest.mark.parametrize(
    ("span", "text"),
    [("a0", "a0 b1 c2"), ("b1", "a0 b1 c2"), ("i8", "h7 i8 j9"), ("j9", "h7 i8 j9"), (None, "a0 b1 c2")],
)
def test_a_window_stays_in_its_text(words: PreTrainedTokenizerBase, span: str | None, text: str):
    found = cut(TEN, *([(span, None)] if span else []), tokens=5, tokenizer=words)
    assert found.text == text


def test_the_middle_of_a_long_span_stays_in_and_the_span_is_cut(words: PreTrainedTokenizerBase):
    found = cut(TEN, ("b1 c2 d3 e4 f5", "x"), tokens=5, tokenizer=words)
    assert found.text == "c2 d3 e4" and found.spans == (Span(0, 8, "x"),)


def test_the_first_own_span_is_the_centre(words: PreTrainedTokenizerBase):
    """Own is what has the row's label; where none has it, all are."""
    spans = (("b1", "other"), ("h7", "mine"), ("j9", "mine"))
    mine = cut(TEN, *spans, label="mine", tokens=5, tokenizer=words)
    assert mine.text == "g6 h7 i8" and mine.spans == (Span(3, 5, "mine"),)
    assert mine.label == "mine"
    assert cut(TEN, *spans, label="none of them", tokens=5, tokenizer=words).text == "a0 b1 c2"


def test_spans_outside_are_gone_and_those_that_touch_are_cut(words: PreTrainedTokenizerBase):
    found = cut(TEN, ("e4", "x"), ("c2 d3", "y"), ("f5 g6", "z"), ("a0", "w"), ("g6", "v"), tokens=5, tokenizer=words)
    assert found.text == "d3 e4 f5"
    assert [(found.text[s.start : s.end], s.label) for s in found.spans or ()] == [
        ("e4", "x"),
        ("d3", "y"),
        ("f5", "z"),
    ]


def test_a_span_that_only_touches_the_window_is_gone(words: PreTrainedTokenizerBase):
    before, inside, behind = Span(6, 9, "x"), Span(12, 14, "mine"), Span(17, 20, "y")  # with the blanks between words
    row = Example(TEN, "1", "1", "mine", (before, inside, behind))
    assert windowed(corpus(row), words, 5).examples[0].spans == (Span(3, 5, "mine"),)


def test_short_texts_are_untouched(words: PreTrainedTokenizerBase):
    short = example("a0 b1  c2 ", ("b1", "x"))
    assert windowed(corpus(short), words, 5).examples == (short,)
    bare = Example(TEN, "1", "1")
    assert windowed(corpus(bare), words, 5).examples[0].spans is None
    assert windowed(corpus(bare), words, 12).examples == (bare,)
    assert windowed(corpus(bare), words, 11).examples[0].text == TEN[:-3]


@pytest.mark.parametrize("tokens", [8, 16, 33])
def test_laws_on_real_clauses(minilm: Path, tokens: int):
    tokenizer = read_tokenizer(minilm)
    whole = read_corpus(embedded("contracts_eval"))
    found = windowed(whole, tokenizer, tokens)
    assert (found.name, found.checksum, len(found)) == (whole.name, whole.checksum, len(whole))
    room, some = tokens - 2, 0
    for before, after in zip(whole, found, strict=True):
        assert (after.id, after.document, after.label) == (before.id, before.document, before.label)
        length = len(tokenizer(before.text, add_special_tokens=False)["input_ids"])
        if length <= room:
            assert after == before
            continue
        some += 1
        starts = [place for place in range(len(before.text)) if before.text.startswith(after.text, place)]
        assert starts, "a piece of the text"
        inside = tokenizer(before.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        counts = [sum(s <= a and b <= s + len(after.text) for a, b in inside) for s in starts]
        assert room in counts, "as many of the text's tokens as there is room for"
        if not before.spans:
            assert starts[0] == 0 and after.spans == before.spans
            continue
        own = [span for span in before.spans if span.label == before.label] or list(before.spans)
        centre = (own[0].start + own[0].end) / 2
        assert any(s - 1 <= centre <= s + len(after.text) + 1 for s in starts)
        for span in after.spans or ():
            piece = after.text[span.start : span.end]
            assert piece and any(
                piece in before.text[old.start : old.end] and old.label == span.label for old in before.spans
            )
    assert some > 10


def test_a_window_needs_room_for_text(words: PreTrainedTokenizerBase):
    with pytest.raises(CorpusError, match="a window of 2 tokens leaves no room for text beside the special tokens"):
        windowed(corpus(example(TEN)), words, 2)


def test_prompts_and_conversations_are_one_piece(words: PreTrainedTokenizerBase):
    answered = Example(TEN, "7", "7", completion=9)
    spoken = Example(TEN, "8", "8", messages=(("user", TEN),))
    for row in (answered, spoken):
        with pytest.raises(CorpusError, match=f"1 of 2 rows of some.jsonl .* id '{row.id}'\\): leave window out"):
            windowed(corpus(Example(TEN, "1", "1"), row), words, 5)


def test_commonest_labels_and_ties():
    names = [*"bcaabd", None, None, None]
    some = corpus(*(Example("x", str(place), str(place), name) for place, name in enumerate(names)))
    assert commonest(some, 2) == ("b", "a")  # two each; b stands first
    assert commonest(some, 3) == ("b", "a", "c")
    assert commonest(some, 9) == ("b", "a", "c", "d")


def test_rows_with_one_of_the_labels():
    some = corpus(
        *(Example("x", str(place), str(place), name) for place, name in enumerate(["a", "b", None, "a", "c"]))
    )
    assert [row.id for row in labelled(some, ("c", "a"))] == ["0", "3", "4"]
    assert len(labelled(some, ())) == 0
