"""Forms of words, and the closed classes."""

import pytest

from attnlens.text.lexis import FUNCTION_WORDS, form, forms, is_content


@pytest.mark.parametrize(
    ("word", "counted"),
    [
        ("Licensor's", "licensor"),
        ("LICENSOR’S", "licensor"),
        ("Don’t", "don't"),
        ("Co‑Brand\u00aded", "co-branded"),
        ("it's", "it"),
        ("s", "s"),
    ],
)
def test_form(word: str, counted: str):
    assert form(word) == counted


def test_forms_of_a_text():
    assert forms("The Licensor’s fee isn't due.") == ("the", "licensor", "fee", "isn't", "due")


@pytest.mark.parametrize("word", "the of shall not herein i'd don't 12 1234 x a viii ten 3rd ' é".split())
def test_not_content(word: str):
    assert not is_content(word)


@pytest.mark.parametrize("word", "licensor pay like need b2b co-branded день 法 e\u0301tat हिन्दी".split())
def test_content(word: str):
    assert is_content(word)


def test_the_list_holds_counted_forms():
    assert {form(word) for word in FUNCTION_WORDS} == FUNCTION_WORDS
    assert len(FUNCTION_WORDS) > 350
