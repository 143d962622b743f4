"""Words of a text, and which word every token belongs to, with real tokenizers of three kinds."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerFast

from attnlens.core.errors import ShapeError, UnsupportedModel
from attnlens.text.align import Encoded, encode, partition, pieces, token_weights, words

CLAUSE = "The Licensor shall indemnify the Licensee; licensor’s royalty-free licence isn't assignable."
NASTY = [
    CLAUSE,
    "",
    " ",
    "...—!",
    "naïve e\u0301clair Résumé",
    "支払 料 and 😀😀 fees",
    "हिन्दी भाषा",
    "a_b  c--d 'e' f' -g",
    "x" * 300,
    "tab\tnew\nline\r\nend ",
    "\u00a0wide\u3000space",
    "ﬁne ½ İstanbul ß",
]


@pytest.fixture(scope="module", params=["wordpiece", "sentencepiece", "characters", "bytes", "trimmed bytes"])
def tokenizer(request: pytest.FixtureRequest):
    if request.param == "wordpiece":
        return AutoTokenizer.from_pretrained(request.getfixturevalue("minilm"))
    if request.param in {"sentencepiece", "characters"}:
        name = {"sentencepiece": "stories260K", "characters": "babyllama_tok105"}[request.param]
        return AutoTokenizer.from_pretrained(request.getfixturevalue("shared") / "models" / name)
    return byte_level(trim="trimmed" in request.param)


def byte_level(trim: bool) -> PreTrainedTokenizerFast:
    """A GPT-2-like tokenizer with few merges, so that one character takes several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(["the licensor shall pay the licensor"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def test_words_by_hand():
    def found(text: str) -> list[str]:
        return [text[start:end] for start, end in words(text)]

    assert found("The licensor’s fee: $1,000 (co-branded).") == ["The", "licensor’s", "fee", "1", "000", "co-branded"]
    assert found("_blank_ a-'b 'tis parties'") == ["blank", "a", "b", "tis", "parties"]
    assert found("e\u0301tat हिन्दी 支払い 😀") == ["e\u0301tat", "हिन्दी", "支", "払", "い"]
    assert words("") == [] and words(" …") == []


@given(st.text(max_size=60))
def test_words_cover_exactly_the_letters_and_digits(text: str):
    intervals = words(text)
    flat = [edge for interval in intervals for edge in interval]
    assert flat == sorted(flat) and all(start < end for start, end in intervals)
    inside = {place for start, end in intervals for place in range(start, end)}
    assert {place for place, character in enumerate(text) if character.isalnum()} <= inside
    assert not any(text[place].isspace() or text[place] == "_" for place in inside)
    for start, end in intervals:  # a word is a word wherever it stands
        assert words(text[start:end]) == [(0, end - start)]


def slow_owners(encoded: Encoded, text: str) -> list[int]:
    """Character by character: the word with most characters of the token, the first of equals."""
    word_at = {place: index for index, (start, end) in enumerate(words(text)) for place in range(start, end)}
    owners = []
    for (start, end), special in zip(encoded.offsets.tolist(), encoded.special, strict=True):
        votes = [word_at[place] for place in range(start, end) if place in word_at]
        owners.append(-1 if special or not votes else max(sorted(set(votes)), key=votes.count))
    return owners


@pytest.mark.parametrize("text", NASTY)
def test_tokens_join_the_word_they_overlap_most(tokenizer: PreTrainedTokenizerFast, text: str):
    encoded = encode(tokenizer, text, 512)
    assert encoded.ids.tolist() == tokenizer(text)["input_ids"]
    assert encoded.word_of.tolist() == slow_owners(encoded, text)
    sizes = pieces(encoded, len(words(text)))
    assert sizes.sum() == (encoded.word_of >= 0).sum()
    assert (sizes > 0).all(), "every word has a token"


@given(text=st.text(max_size=30))
@settings(max_examples=25, deadline=None)
def test_owners_on_any_text(tokenizer: PreTrainedTokenizerFast, text: str):
    encoded = encode(tokenizer, text, 512)
    assert encoded.word_of.tolist() == slow_owners(encoded, text)


def test_a_token_over_several_words_joins_the_longest_share():
    """One token of a tokenizer without any splitting covers several words; ties go to the first."""
    backend = Tokenizer(models.WordLevel({"to be": 0, "or not": 1, "a cd e": 2}, unk_token="to be"))
    whole = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert encode(whole, "to be", 8).word_of.tolist() == [0]
    assert encode(whole, "or not", 8).word_of.tolist() == [1]
    assert encode(whole, "a cd e", 8).word_of.tolist() == [1]


def test_every_piece_of_a_marked_word_is_marked(tokenizer: PreTrainedTokenizerFast):
    marked = np.array([CLAUSE[start:end].lower() in {"licensor", "indemnify"} for start, end in words(CLAUSE)])
    assert marked.sum() == 2
    encoded = encode(tokenizer, CLAUSE, 512)
    groups = partition(encoded, marked)
    covered = {
        place
        for (start, end), group in zip(encoded.offsets.tolist(), groups, strict=True)
        for place in range(start, end)
        if group == 1
    }
    for word in ("Licensor", "indemnify"):
        start = CLAUSE.index(word)
        assert set(range(start, start + len(word))) <= covered
    assert (groups == 1).sum() == pieces(encoded, len(marked))[marked].sum()
    assert ((groups == 2) == encoded.special).all() and groups.min() >= 0


def test_piece_strings_would_lose_these_words(minilm: Path):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    encoded = encode(tokenizer, CLAUSE, 512)
    salient = {"licensor", "indemnify"}
    marked = np.array([CLAUSE[start:end].lower() in salient for start, end in words(CLAUSE)])
    by_offsets = (partition(encoded, marked) == 1).sum()
    by_strings = sum(token in salient for token in tokenizer.convert_ids_to_tokens(encoded.ids.tolist()))
    assert by_offsets == 7 and by_strings == 0  # li ##cens ##or, ind ##em ##ni ##fy


def test_tokens_that_share_one_character_all_belong_to_its_word():
    text = "fee 料 😀"
    encoded = encode(byte_level(trim=False), text, 64)
    at_character = (encoded.offsets == [4, 5]).all(1)
    assert at_character.sum() == 3
    assert encoded.word_of[at_character].tolist() == [1, 1, 1]
    assert partition(encoded, np.array([False, True])).sum() == 3
    assert (encoded.word_of[(encoded.offsets == [6, 7]).all(1)] == -1).all(), "an emoji is no word"


def test_special_tokens_belong_to_no_word(minilm: Path):
    wordpiece = AutoTokenizer.from_pretrained(minilm)
    encoded = encode(wordpiece, "fee [SEP] due", 64)
    assert encoded.special.tolist() == [True, False, True, False, True]
    assert encoded.word_of.tolist() == [-1, 0, -1, 2, -1]  # word 1 is "SEP": it has no pieces
    assert pieces(encoded, 3).tolist() == [1, 0, 1]

    spelled = encode(byte_level(trim=True), "pay<|endoftext|>now", 64)
    assert spelled.special.sum() == 1


def test_an_unknown_character_is_content(shared: Path):
    """Also where the tokenizer pads with its unknown token."""
    llama = AutoTokenizer.from_pretrained(shared / "models" / "babyllama_tok105")
    assert llama.pad_token_id == llama.unk_token_id
    unknown = encode(llama, "日", 64)
    assert unknown.ids[-1] == llama.unk_token_id
    assert unknown.special.tolist() == [True] + [False] * (len(unknown.ids) - 1)
    assert unknown.word_of[-1] == 0


def test_truncation_leaves_words_without_pieces(tokenizer: PreTrainedTokenizerFast):
    count = len(words(CLAUSE))
    full, cut = encode(tokenizer, CLAUSE, 512), encode(tokenizer, CLAUSE, 12)
    assert len(cut.ids) == 12 < len(full.ids)
    sizes, all_sizes = pieces(cut, count), pieces(full, count)
    gone = np.flatnonzero(sizes == 0)
    assert len(gone) and gone.tolist() == list(range(gone[0], count)), "what is cut is the end"
    assert (sizes <= all_sizes).all()


def test_weights_by_hand(minilm: Path):
    encoded = encode(AutoTokenizer.from_pretrained(minilm), "the licensor, now", 64)
    # [CLS] the li ##cens ##or , now [SEP]
    assert token_weights(encoded, np.array([0.5, 2.0, -1.0])).tolist() == [0, 0.5, 2, 2, 2, 0, -1, 0]
    assert partition(encoded, np.array([False, True, False])).tolist() == [2, 0, 1, 1, 1, 0, 0, 2]
    assert pieces(encoded, 3).tolist() == [1, 3, 1]
    with pytest.raises(ShapeError, match="at least 3; got 2"):
        token_weights(encoded, np.zeros(2))
    with pytest.raises(ShapeError, match="at least 3; got 1"):
        pieces(encoded, 1)


def test_what_cannot_be_encoded(minilm: Path):
    with pytest.raises(UnsupportedModel, match="CanineTokenizer is a slow one"):
        encode(CanineTokenizer(), "text", 8)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    assert encode(tokenizer, "some text", 2).special.all()
    with pytest.raises(ShapeError, match="room for 2 special tokens and text; got 1"):
        encode(tokenizer, "some text", 1)
