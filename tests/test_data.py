"""The embedded corpora: what every reader of `data/` relies on. `data/check_contracts.py` measures the rest."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parent.parent / "data"


def script(name: str) -> ModuleType:
    """A script of data/ as a module."""
    spec = importlib.util.spec_from_file_location(f"data_{name}", DATA / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return script("generate_contracts")


@pytest.fixture(scope="module")
def checks() -> ModuleType:
    return script("check_contracts")


SPLITS = {"contracts_train": (1200, 60), "contracts_eval": (300, 40)}


def test_the_generator_writes_the_same_bytes(generator):
    for split, content in generator.generate().items():
        assert (DATA / f"contracts_{split}.jsonl").read_bytes() == content.encode(), f"regenerate {split}"
    assert generator.generate(seed=1) != generator.generate()


@pytest.mark.parametrize("name", SPLITS)
def test_counts_and_balance(name):
    examples, documents = SPLITS[name]
    corpus = rows(name)
    assert len(corpus) >= examples and len({row["document"] for row in corpus}) >= documents
    assert len({row["id"] for row in corpus}) == len(corpus)
    each = Counter((row["document"], row["label"]) for row in corpus)
    assert len({label for _, label in each}) == 8
    assert len(each) == 8 * len({row["document"] for row in corpus}) and len(set(each.values())) == 1


def test_no_document_party_or_text_is_in_both_splits(generator):
    train, test = rows("contracts_train"), rows("contracts_eval")
    for field in ("document", "id", "text"):
        assert not {row[field] for row in train} & {row[field] for row in test}
    names = generator.NAMES
    company = re.compile(f"(?:{'|'.join(names['firms'])}) (?:{'|'.join(names['trades'])})")
    parties = [{found for row in split for found in company.findall(row["text"])} for split in (train, test)]
    assert min(map(len, parties)) >= 10 and not parties[0] & parties[1]


@pytest.mark.parametrize("name", SPLITS)
def test_spans_are_a_few_whole_words(name):
    for row in rows(name):
        text, ends = row["text"], [0]
        assert row["spans"], row["id"]
        for span in row["spans"]:
            start, end = span["start"], span["end"]
            assert span["label"] == row["label"]
            assert ends[-1] <= start < end <= len(text)
            assert re.fullmatch(r"\S(.*\S)?", text[start:end]), "a span starts and ends with a word"
            assert not re.search(r"\w\Z", text[:start]) and not re.match(r"\w", text[end:]), "no word is cut"
            ends.append(end)
        marked = sum(len(text[span["start"] : span["end"]].split()) for span in row["spans"])
        assert 2 <= marked <= 20 and marked < 0.75 * len(text.split()), row["id"]


@pytest.mark.parametrize("name", SPLITS)
def test_texts_are_clean(name):
    for row in rows(name):
        text = row["text"]
        assert not re.search(r"[{}*]|  |\.\.|,,| [.,;]|\bthe the\b", text), text
        assert text.endswith(".")
        assert not re.search(r"[.] [a-z]", text), text


def test_deciding_words_are_early_middle_and_late():
    shares = [row["spans"][0]["start"] / len(row["text"]) for row in rows("contracts_train")]
    thirds = Counter(int(3 * share) for share in shares)
    assert min(thirds[third] for third in range(3)) >= 0.15 * len(shares)


def test_frames_that_state_and_frames_that_mention_share_their_words(generator):
    """Most words of a frame that only mentions occur in a frame that states, and no frame has both roles."""
    frames = generator.FRAMES
    stating, mentioning = [frames[f"{kind}_duty"] + frames[f"{kind}_rule"] for kind in ("state", "mention")]
    bare = {frame.replace("*", "") for frame in stating}
    assert not bare & set(mentioning)
    tokens = [Counter(word for frame in group for word in re.findall(r"\w+", frame)) for group in (bare, mentioning)]
    shared = sum(count for word, count in tokens[1].items() if word in tokens[0])
    assert shared >= 0.75 * tokens[1].total()


def test_unseen_phrases_are_not_in_training(generator):
    train = " ".join(row["text"] for row in rows("contracts_train"))
    for entry in generator.TYPES.values():
        for phrase in entry["unseen_duties"] + entry["unseen_rules"]:
            fixed = max(re.split(r"\{\w+\}", phrase.replace("*", "")), key=len).strip()
            assert fixed not in train, phrase


def test_position_does_not_tell_the_type(checks):
    train, test = checks.read("train"), checks.read("eval")
    assert checks.best_of_features(checks.position_features, train, test) <= 1 / 8 + 0.05


def test_a_bag_of_words_does_not_tell_the_type(checks):
    train, test = checks.read("train"), checks.read("eval")
    assert 0.25 <= checks.bag_of_words(1, train, test) <= 0.80


def test_documents_have_a_style(checks):
    assert checks.document_correlation(checks.read("train"), checks.count_words) > 0.05


def test_intraclass_correlation_by_hand(checks):
    """Groups (1, 1) and (3, 3) differ between only: 1. Twice (1, 3) differs within only: (0 - 2)/(0 + 2) = -1.

    (1, 3) and (5, 7): MSB = 2 · 8 = 16, MSW = 2, so 14/18.
    """
    assert checks.intraclass_correlation([[1, 1], [3, 3]]) == 1
    assert checks.intraclass_correlation([[1, 3], [1, 3]]) == -1
    assert checks.intraclass_correlation([[1, 3], [5, 7]]) == pytest.approx(14 / 18)


def test_probe_is_general_and_varied():
    probe = rows("probe")
    documents = {row["document"] for row in probe}
    texts = [row["text"] for row in probe]
    assert len(probe) >= 200 and len(set(texts)) == len(texts) == len({row["id"] for row in probe})
    assert len(documents) >= 20 and len({document.split("-")[0] for document in documents}) >= 5
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[len(texts) // 20] <= 6 and lengths[-len(texts) // 20] >= 18
    assert len({text.split()[0] for text in texts}) >= 80
    assert not any(re.search(r"\b(shall|hereby|herein|licensee)\b", text.lower()) for text in texts)


@pytest.mark.parametrize("name", [*SPLITS, "probe"])
def test_the_reader_takes_every_file(name):
    from attnlens import read_corpus

    corpus = read_corpus(DATA / f"{name}.jsonl")
    assert len(corpus) == len(rows(name)) and corpus.has_documents
