"""The lexicon: what a term matches, and which files hold one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.salience import Aids, mark_words
from attnlens.salience.lexicon import mark_terms, read_lexicon
from tests.salience.build import corpus_of


def marked(text: str, *terms: str) -> list[int]:
    [flags] = mark_terms(corpus_of([text]), Aids(lexicon=terms))
    return [place for place, flag in enumerate(flags) if flag]


def test_by_hand():
    text = "The Late Fee's due; a fee is late"
    assert marked(text, "late fee") == [1, 2]
    assert marked(text, "fee") == [2, 5] and marked(text, "late fee", "fee") == [1, 2, 5]
    assert marked(text, "fees") == marked(text, "late a") == []
    assert marked("fee fee fee fee", "fee fee fee") == [0, 1, 2, 3]  # occurrences may overlap
    assert marked("the late", "late fee") == []  # cut short by the end
    assert marked("in the term of it", "the term of") == [1, 2, 3]  # function words too, if they are in the term


LETTERS = st.sampled_from("abc")


@given(st.lists(LETTERS, max_size=12), st.lists(st.lists(LETTERS, min_size=1), max_size=3))
def test_against_the_slow_reference(text: list[str], terms: list[list[str]]):
    expected = set()
    for term in terms:
        for start in range(len(text) - len(term) + 1):
            if text[start : start + len(term)] == term:
                expected |= set(range(start, start + len(term)))
    assert marked(" ".join(text), *(" ".join(term) for term in terms)) == sorted(expected)


def test_without_terms():
    with pytest.raises(AttnlensError, match=r"'lexicon' needs the terms that matter\. Add --lexicon FILE"):
        mark_words("lexicon", corpus_of(["text"]), Aids())
    with pytest.raises(CorpusError, match=r"the term '…' of the lexicon holds no word: remove it"):
        mark_words("lexicon", corpus_of(["text"]), Aids(lexicon=("fee", "…")))


def test_files(tmp_path: Path):
    path = tmp_path / "terms.txt"
    path.write_text("\ufefflate fee\n\n  term \r\n", encoding="utf-8")
    assert read_lexicon(path) == ("late fee", "term")
    path.write_text(" \n")
    with pytest.raises(CorpusError, match=r"terms\.txt holds no term: give one a line"):
        read_lexicon(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match=r"terms\.txt cannot be read as UTF-8 text"):
        read_lexicon(path)
    with pytest.raises(CorpusError, match=r"missing\.txt does not exist"):
        read_lexicon(tmp_path / "missing.txt")
    with pytest.raises(CorpusError, match=r"cannot be read as UTF-8 text"):
        read_lexicon(tmp_path)
