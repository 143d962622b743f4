"""The rows of a study: where names lead, which rows are kept, and that what is written is read back equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from attnlens.analysis.studies.data import Places, prepared
from attnlens.analysis.studies.file import DataPart
from attnlens.checkpoints.load import read_tokenizer
from attnlens.checkpoints.packaged import encoder
from attnlens.core.errors import AttnlensError, CorpusError
from attnlens.text.corpus import corpus_checksum, read_corpus
from attnlens.text.embedded import embedded
from attnlens.text.windows import windowed

PLAIN = [
    {
        "id": f"{n}",
        "document": f"d{n // 2}",
        "text": f"text {n} — wörter",
        "label": "ab"[n % 2],
        "spans": [{"start": 0, "end": 4}],
    }
    for n in range(6)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path.name


def part(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], **choices: Any) -> DataPart:
    names = write(folder / "train.jsonl", train), write(folder / "test.jsonl", test)
    return DataPart(name="some", train=names[0], test=names[1], **choices)


def prepare(some: DataPart, folder: Path, *, model: str = "", task: str | None = None):
    return prepared(some, model, Places(folder, None), folder / "made", task=task)


FORMS = {
    "plain": PLAIN,
    "no document": [{name: value for name, value in row.items() if name != "document"} for row in PLAIN],
    "no label, no spans": [{"id": row["id"], "text": row["text"]} for row in PLAIN],
    "empty spans": [row | {"spans": []} for row in PLAIN],
    "spans with labels": [
        row | {"spans": [{"start": 1, "end": 3, "label": "a"}, {"start": 0, "end": 9}]} for row in PLAIN
    ],
    "several labels": [row | {"label": some} for row, some in zip(PLAIN, [["a"], [], ["b", "a"]] * 2, strict=True)],
    "completions": [
        {
            "id": row["id"],
            "document": row["document"],
            "prompt": "Say: ",
            "completion": row["text"],
            "label": row["label"],
        }
        for row in PLAIN
    ],
    "conversations": [
        {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": f"yes {row['id']}"},
            ],
        }
        for row in PLAIN
    ],
}


@pytest.mark.parametrize("rows", FORMS.values(), ids=FORMS)
def test_what_is_written_is_read_back_equal(tmp_path: Path, rows: list[dict[str, Any]]):
    test = [row | {"id": f"t{row['id']}"} for row in rows[:4]]
    files = prepare(part(tmp_path, rows, test, limit=100), tmp_path)
    for file, name in zip(files, ("train", "test"), strict=True):
        assert file.path == tmp_path / "made" / f"{name}.jsonl" and file.sha256 == corpus_checksum(file.path)
        before, after = read_corpus(tmp_path / f"{name}.jsonl"), read_corpus(file.path)
        assert after.examples == before.examples and after.has_documents == before.has_documents
    assert not list((tmp_path / "made").glob(".*"))


def test_columns_have_their_own_names_afterwards(tmp_path: Path):
    rows = [{"sentence": row["text"], "topic": row["label"], "text": "not this"} for row in PLAIN]
    columns = {"text": "sentence", "label": "topic"}
    files = prepare(part(tmp_path, rows, rows[:3], columns=columns), tmp_path)
    assert [example.text for example in read_corpus(files.train.path)] == [row["text"] for row in PLAIN]
    assert [example.label for example in read_corpus(files.test.path)] == ["a", "b", "a"]


def test_where_nothing_is_chosen_the_files_themselves_are_read(tmp_path: Path):
    files = prepare(part(tmp_path, PLAIN, PLAIN[:3]), tmp_path)
    assert files.train.path == tmp_path / "train.jsonl" and not (tmp_path / "made").exists()
    assert files.test.sha256 == corpus_checksum(tmp_path / "test.jsonl")


def test_labels_are_chosen_on_the_training_rows(tmp_path: Path):
    """c is commonest in the test rows and rarest in training."""
    train = [{"text": f"{n}", "label": label} for n, label in enumerate("aabbbac")]
    test = [{"text": f"t{n}", "label": label} for n, label in enumerate("cccab")]
    files = prepare(part(tmp_path, train, test, labels=2), tmp_path)
    assert [example.label for example in read_corpus(files.train.path)] == list("aabbba")
    assert [example.label for example in read_corpus(files.test.path)] == ["a", "b"]


def test_the_limit_is_of_training_rows_spread_over_documents(tmp_path: Path):
    files = prepare(part(tmp_path, PLAIN, PLAIN[:4], limit=3), tmp_path)
    kept = read_corpus(files.train.path)
    assert sorted(example.document for example in kept) == ["d0", "d1", "d2"]
    assert len(read_corpus(files.test.path)) == 4
    again = prepare(part(tmp_path, PLAIN, PLAIN[:4], limit=3), tmp_path)
    assert again == files


def test_windows_are_those_of_the_model(tmp_path: Path, minilm: Path):
    long = [
        row | {"text": "one two three four five six seven eight " * 3, "spans": [{"start": 50, "end": 60}]}
        for row in PLAIN
    ]
    files = prepare(part(tmp_path, long, long[:3], window=10), tmp_path, model=str(minilm))
    expected = windowed(read_corpus(tmp_path / "train.jsonl"), read_tokenizer(minilm), 10)
    assert read_corpus(files.train.path).examples == expected.examples
    assert {len(example.text.split()) for example in expected} == {8}


def test_a_name_leads_beside_the_file_under_the_root_or_into_attnlens(tmp_path: Path, minilm: Path):
    for folder in ("beside", "root"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "rows.jsonl", PLAIN)
    places = Places(tmp_path / "beside", tmp_path / "root")
    assert places.of_data("rows.jsonl") == tmp_path / "beside" / "rows.jsonl"
    assert places.of_data("{data_root}/rows.jsonl") == tmp_path / "root" / "rows.jsonl"
    assert places.of_data(str(tmp_path / "root" / "rows.jsonl")) == tmp_path / "root" / "rows.jsonl"
    assert places.of_data("attnlens:contracts_train") == embedded("contracts_train")
    assert places.of_model("attnlens:all-MiniLM-L6-v2") == str(minilm) == str(encoder())
    assert places.of_model("../root") == str(tmp_path / "beside" / ".." / "root")
    assert places.of_model("some/hub-id") == "some/hub-id"


def test_a_study_that_needs_a_root_says_so(tmp_path: Path):
    with pytest.raises(AttnlensError, match=r"the study reads \{data_root\}/cuad.jsonl: add --data-root DIR"):
        Places(tmp_path, None).of_data("{data_root}/cuad.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CorpusError, match=f"{tmp_path}/nowhere.jsonl, which the study names, is not there"):
        Places(tmp_path, None).of_data("nowhere.jsonl")
    with pytest.raises(CorpusError, match="the embedded corpus 'contracts' is missing"):
        Places(tmp_path, None).of_data("attnlens:contracts")


def test_a_test_on_the_training_data_is_refused(tmp_path: Path):
    for choices in ({}, {"limit": 2}):
        with pytest.raises(CorpusError, match="some: the test data are the training data, so nothing would be tested"):
            prepare(part(tmp_path, PLAIN, PLAIN, **choices), tmp_path)


def test_a_test_label_that_no_training_row_has_is_refused(tmp_path: Path):
    strange = [PLAIN[0] | {"label": "z"}]
    with pytest.raises(CorpusError, match="some: no training row has the label 'z', which test rows have"):
        prepare(part(tmp_path, PLAIN, strange), tmp_path)
    prepare(part(tmp_path, PLAIN, strange), tmp_path, task="causal-lm")  # labels are not taught there
    completions = [{"prompt": "a", "completion": row["text"], "label": row["label"]} for row in PLAIN]
    prepare(part(tmp_path, completions, [completions[0] | {"label": "z"}]), tmp_path)


def test_a_choice_that_leaves_nothing_is_refused(tmp_path: Path):
    other = [row | {"label": "z"} for row in PLAIN]
    with pytest.raises(CorpusError, match=r"no row of test.jsonl is left of what the study chooses"):
        prepare(part(tmp_path, PLAIN, other, labels=2), tmp_path)
