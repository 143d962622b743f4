"""Reading: what a row may hold, what is refused and how, and sampling."""

import csv
import hashlib
import io
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlens.core.errors import CorpusError, UnknownName
from attnlens.text.corpus import Corpus, Example, Span, corpus_checksum, read_corpus
from attnlens.text.readers import raw_rows


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_full_row_of_jsonl(tmp_path: Path):
    row = {
        "text": "Pay the fee.",
        "label": 3,
        "id": 17,
        "document": "deed",
        "spans": [{"start": 0, "end": 3, "label": "act"}, {"start": 8, "end": 11}],
        "split": "ignored",
    }
    path = write(tmp_path, "a.jsonl", jsonl(row))
    corpus = read_corpus(path)
    assert corpus.examples == (Example("Pay the fee.", "17", "deed", "3", (Span(0, 3, "act"), Span(8, 11, None))),)
    assert corpus.name == "a.jsonl" and corpus.has_documents and len(corpus) == 1
    assert corpus.checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_text_is_needed(tmp_path: Path):
    corpus = read_corpus(str(write(tmp_path, "a.jsonl", '{"text": "one"}\n\n{"text": "two", "label": null}')))
    # Rows are lines of the file, so that an editor finds them; without a document each stands alone.
    assert [(example.id, example.document) for example in corpus] == [("1", "1"), ("3", "3")]
    assert all(example.label is None and example.spans is None for example in corpus)
    assert not corpus.has_documents and corpus.labels == ()


def test_a_list_of_labels(tmp_path: Path):
    """In JSONL as a list, in CSV as JSON; an empty one is no lack of labels, and a bracket alone makes no list."""
    cells = [["b", "a", "b"], [], ["3"], "[see below]", None]
    lines = jsonl(*({"text": "x", "label": cell} for cell in cells)).replace('"3"', "3")
    table = 'text,label\nx,"[""b"",""a"",""b""]"\nx,[]\nx,[3]\nx,[see below]\nx,\n'
    for corpus in (read_corpus(write(tmp_path, "a.jsonl", lines)), read_corpus(write(tmp_path, "a.csv", table))):
        assert [example.labels for example in corpus] == [("b", "a"), (), ("3",), None, None]
        assert [example.label for example in corpus] == [None, None, None, "[see below]", None]


def test_an_empty_list_of_spans_is_not_a_lack_of_spans(tmp_path: Path):
    corpus = read_corpus(write(tmp_path, "a.jsonl", jsonl({"text": "one", "spans": []}, {"text": "two"})))
    assert [example.spans for example in corpus] == [(), None]


def test_csv_with_byte_order_mark_crlf_and_quotes(tmp_path: Path):
    content = '\ufefftext,label,spans,document\r\n"Pay, ""now""\r\nor later",1,"[{""start"":0,""end"":3}]",d\r\n'
    content += "\r\nNo,,,d\r\n"
    first, second = read_corpus(write(tmp_path, "a.CSV", content))
    assert first == Example('Pay, "now"\r\nor later', "1", "d", "1", (Span(0, 3),))
    assert second == Example("No", "2", "d", None, None)


def test_only_a_line_feed_ends_a_row_of_jsonl(tmp_path: Path):
    """str.splitlines() would cut at these too; JSON lets them stand in a string as they are."""
    text = "one\u2028two\u2029three\x85four"
    corpus = read_corpus(write(tmp_path, "a.jsonl", json.dumps({"text": text}, ensure_ascii=False)))
    assert [example.text for example in corpus] == [text]


def test_columns_are_renamed(tmp_path: Path):
    path = write(tmp_path, "a.csv", "sentence,category\nhello,greeting\n")
    corpus = read_corpus(path, columns={"text": "sentence", "label": "category"})
    assert corpus.examples[0].text == "hello" and corpus.labels == ("greeting",)
    with pytest.raises(CorpusError, match=r"field label: needs a column 'class'; the columns are 'category', 'sent"):
        read_corpus(path, columns={"text": "sentence", "label": "class"})
    with pytest.raises(UnknownName, match="did you mean 'text'"):
        read_corpus(path, columns={"txt": "sentence"})


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@given(texts=st.lists(TEXT, min_size=1, max_size=5), labels=st.lists(TEXT, min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: list[str], labels: list[str]):
    labels = [label.replace("[", "(") for label in labels]  # a cell that is a JSON list holds several
    folder = tmp_path_factory.mktemp("round")
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=False)]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    for path in (write(folder, "a.jsonl", lines), write(folder, "a.csv", table.getvalue())):
        assert [{"text": example.text, "label": example.label} for example in read_corpus(path)] == rows


GOOD = {"text": "fine"}
FAULTS = {
    "empty file": ("a.jsonl", "", "needs at least one example"),
    "only a header": ("a.csv", "text,label\n", "needs at least one example"),
    "empty csv": ("a.csv", "", "needs at least one example"),
    "no text in jsonl": (
        "a.jsonl",
        jsonl(GOOD, {"sentence": "x", "label": "y"}),
        "row 2, field text: needs a column 'text'; the columns are 'sentence', 'label'. "
        "Name the right one with --text-column",
    ),
    "no text in csv": (
        "a.csv",
        "sentence\nx\n",
        "row 1, field text: needs a column 'text'; the columns are 'sentence'",
    ),
    "text a number": ("a.jsonl", jsonl(GOOD, {"text": 5}), "row 2, field text: Input should be a valid string; got 5."),
    "text null": ("a.jsonl", jsonl({"text": None}), "row 1, field text: Input should be a valid string; got None."),
    "text blank": ("a.jsonl", jsonl(GOOD, {"text": " \n"}), "row 2, field text: the text is empty"),
    "text blank in csv": ("a.csv", 'text,label\nx,1\n"",2\n', "row 2, field text: the text is empty"),
    "half a character": ("a.jsonl", '{"text": "\\ud800"}', "row 1, field text: half of a surrogate"),
    "half a label": ("a.jsonl", '{"text": "x", "label": "\\udfff"}', "row 1, field label: half of a surrogate"),
    "labels with a blank": (
        "a.jsonl",
        jsonl({"text": "x", "label": ["a", " "]}),
        "row 1, field labels.1: Input should be a valid string",
    ),
    "labels nested": (
        "a.csv",
        'text,label\nx,"[[""a""]]"\n',
        "got ['a']. Give a list of names, empty where none fits",
    ),
    "label a fraction": ("a.jsonl", jsonl({"text": "x", "label": 0.5}), "row 1, field label: "),
    "not json": ("a.jsonl", jsonl(GOOD) + "{'text': 'x'}\n", "row 2: needs one JSON object a line"),
    "endless json": ("a.jsonl", "[" * 100_000, "row 1: needs one JSON object a line"),
    "a huge number": ("a.jsonl", '{"text": ' + "1" * 5_000 + "}", "row 1: needs one JSON object a line"),
    "not an object": ("a.jsonl", '"x"\n', "row 1: needs one JSON object a line; got 'x'"),
    "spans not a list": ("a.jsonl", jsonl({"text": "x", "spans": {"start": 0}}), "row 1, field spans: "),
    "span without end": ("a.jsonl", jsonl({"text": "x", "spans": [{"start": 0}]}), "row 1, field spans.0.end: "),
    "span of floats": (
        "a.jsonl",
        jsonl({"text": "x", "spans": [{"start": 0.0, "end": 1}]}),
        "row 1, field spans.0.start: ",
    ),
    "span too long": (
        "a.jsonl",
        jsonl(GOOD, {"text": "four", "spans": [{"start": 0, "end": 4}, {"start": 0, "end": 5}]}),
        "row 2, field spans.1: the span from 0 to 5 lies outside its text of 4 characters",
    ),
    "span before the text": ("a.jsonl", jsonl({"text": "x", "spans": [{"start": -1, "end": 1}]}), "lies outside its"),
    "span empty": ("a.jsonl", jsonl({"text": "xyz", "spans": [{"start": 1, "end": 1}]}), "is empty or reversed"),
    "span reversed": ("a.jsonl", jsonl({"text": "xyz", "spans": [{"start": 2, "end": 1}]}), "is empty or reversed"),
    "spans not json in csv": ("a.csv", 'text,spans\nx,"[0, 1"\n', "row 1, field spans: the cell is not JSON"),
    "too many cells": ("a.csv", "text,label\nx,1\nx,y,1\n", "row 2: needs 2 cells as in the header; got 3"),
    "open quote": ("a.csv", 'text\n"x\n', "row 1: needs CSV"),
    "long cell": ("a.csv", "text\nfine\n" + "x" * 200_000 + "\n", "row 2: needs CSV with cells of at most 131,072"),
    "column twice": ("a.csv", "text,text\nx,y\n", "'text' occurs twice"),
    "not utf-8": ("a.jsonl", b'{"text": "caf\xe9"}', "needs UTF-8; byte 13 is not"),
    "some documents": (
        "a.jsonl",
        jsonl({"text": "x", "document": "d"}, GOOD, GOOD),
        "row 2, field document: needs every row to name its document, or none; 2 of 3 do not",
    ),
    "suffix": (
        "a.xlsx",
        "text",
        "needs a file whose name ends in .jsonl or .csv or .parquet or .txt, or a folder written by save_to_disk; "
        "got '.xlsx'",
    ),
    "no suffix": ("a", "text", "got a name without suffix"),
    "two forms": (
        "a.jsonl",
        jsonl(GOOD, {"text": "x", "prompt": "y", "completion": "z"}),
        "row 2: needs its text in one form; got text and prompt + completion. Leave one out, or name the columns to "
        "read, as with --text-column.",
    ),
    "three forms": (
        "a.jsonl",
        jsonl({"text": "x", "prompt": "y", "messages": [{"role": "user", "content": "z"}]}),
        "row 1: needs its text in one form; got text and prompt + completion and messages. ",
    ),
    "a prompt alone": (
        "a.jsonl",
        jsonl({"prompt": "x", "id": "1"}),
        "row 1, field completion: needs a column 'completion'; the columns are 'prompt', 'id'.",
    ),
    "completion blank": (
        "a.csv",
        "prompt,completion\nx,y\nx, \n",
        "row 2, field completion: the text is empty; got ' '. Give the completion as a non-empty string",
    ),
    "prompt null": (
        "a.jsonl",
        jsonl({"prompt": None, "completion": "y"}),
        "row 1, field prompt: Input should be a valid string",
    ),
    "span beyond prompt and completion": (
        "a.jsonl",
        jsonl({"prompt": "ab", "completion": "cd", "spans": [{"start": 3, "end": 5}]}),
        "row 1, field spans.0: the span from 3 to 5 lies outside its text of 4 characters",
    ),
    "no message": ("a.jsonl", jsonl({"messages": []}), "row 1, field messages: Value should have at least 1 item"),
    "message without role": (
        "a.jsonl",
        jsonl({"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}),
        "row 1, field messages.1.role: Field required; got {'content': 'y'}. Give messages as [{\"role\": \"user\"",
    ),
    "message of parts": (
        "a.jsonl",
        jsonl({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        "row 1, field messages.0.content: Input should be a valid string",
    ),
    "messages not json in csv": ("a.csv", "messages\nhello\n", "row 1, field messages: the cell is not JSON"),
    "spans of messages": (
        "a.jsonl",
        jsonl({"messages": [{"role": "user", "content": "x"}], "spans": [{"start": 0, "end": 1}]}),
        "row 1, field spans: needs a text whose characters can be counted",
    ),
    "an empty text file": ("a.txt", " \n\n", "needs at least one example"),
    "no parquet": ("a.parquet", "PAR1", "needs a Parquet file; this one is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_file(tmp_path: Path, fault: str):
    name, content, message = FAULTS[fault]
    path = write(tmp_path, name, content)
    with pytest.raises(CorpusError) as caught:
        read_corpus(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and message in line and "\n" not in line and len(line) < 400 + len(str(path))
    assert line.endswith((".", ")"))


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with pytest.raises(CorpusError, match=r"none\.jsonl: needs a data file; there is none"):
        read_corpus(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(CorpusError, match="got a folder"):
        read_corpus(tmp_path / "folder.jsonl")


def test_prompt_and_completion_are_joined_as_they_stand(tmp_path: Path):
    row = {"prompt": "Who? ", "completion": "You.", "spans": [{"start": 5, "end": 8}], "text": None}
    (example,) = read_corpus(write(tmp_path, "a.jsonl", jsonl(row)))
    assert example == Example("Who? You.", "1", "1", None, (Span(5, 8),), completion=5)
    assert example.text[example.completion :] == "You."


def test_messages_are_kept_and_joined(tmp_path: Path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "name": "ignored"}]
    table = io.StringIO(newline="")
    csv.writer(table).writerows([["messages"], [json.dumps(messages)]])
    turns = (("user", "Hi"), ("assistant", "Hello"))
    for path in (
        write(tmp_path, "a.jsonl", jsonl({"messages": messages})),
        write(tmp_path, "a.csv", table.getvalue()),
    ):
        assert read_corpus(path).examples == (Example("Hi\nHello", "1", "1", messages=turns),)


def test_a_named_column_decides_between_two_forms(tmp_path: Path):
    path = write(tmp_path, "a.jsonl", jsonl({"text": "all", "prompt": "q", "completion": "a", "label": "story"}))
    assert read_corpus(path, columns={"text": "text"}).examples == (Example("all", "1", "1", "story"),)
    (pair,) = read_corpus(path, columns={"prompt": "prompt"})
    assert pair.text == "qa" and pair.completion == 1
    # A column that is named as the text is not read as the prompt, too.
    (text,) = read_corpus(write(tmp_path, "b.jsonl", jsonl({"prompt": "q"})), columns={"text": "prompt"})
    assert text.text == "q" and text.completion is None
    (text,) = read_corpus(path, columns={"text": "label"})
    assert text.text == "story" and text.label is None


def test_passages_of_plain_text_are_numbered_by_their_first_line(tmp_path: Path):
    content = "\ufeff\r\nFirst line,\r\n  second.\r\n \t\r\n\r\nNext\u2028one.\n\nLast"
    corpus = read_corpus(write(tmp_path, "a.txt", content))
    assert [(example.id, example.text) for example in corpus] == [
        ("2", "First line,\n  second."),
        ("6", "Next\u2028one."),
        ("8", "Last"),
    ]
    assert not corpus.has_documents and {example.document for example in corpus} == {"2", "6", "8"}


CONTENTS = {
    "text": [
        {"text": "Pay, now.", "label": "fee", "document": "d", "spans": [{"start": 0, "end": 3, "label": "act"}]},
        {"text": "Line\none", "label": None, "document": "e", "spans": []},
        {"text": "Né", "label": "3", "document": "e", "spans": None},
    ],
    "pairs": [{"prompt": "Q: ", "completion": "A"}, {"prompt": "R:\n", "completion": " B"}],
    "mixed": [
        {"prompt": "Q: ", "completion": "A", "text": None, "messages": None},
        {"prompt": None, "completion": None, "text": "plain", "messages": None},
        {"prompt": None, "completion": None, "text": None, "messages": [{"role": "user", "content": "Hi"}]},
    ],
}


@pytest.mark.parametrize("content", CONTENTS)
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, content: str):
    import datasets
    import pyarrow
    from pyarrow import parquet

    rows = CONTENTS[content]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})
    written = pyarrow.Table.from_pylist(rows)
    parquet.write_table(written.append_column("unread", pyarrow.array([b"\xff"] * len(rows))), tmp_path / "a.parquet")
    data = datasets.Dataset(written)
    if content == "text":
        names = datasets.ClassLabel(names=["3", "fee"])
        data = data.remove_columns("label").add_column("label", [1, -1, 0], feature=names)  # pyright: ignore
    data.save_to_disk(str(tmp_path / "folder"))
    expected = read_corpus(write(tmp_path, "a.jsonl", jsonl(*rows)))
    for path in (write(tmp_path, "a.csv", table.getvalue()), tmp_path / "a.parquet", tmp_path / "folder"):
        corpus = read_corpus(path)
        assert corpus.examples == expected.examples
        assert corpus.has_documents == expected.has_documents and corpus.name == path.name
        assert corpus.checksum == corpus_checksum(path) != expected.checksum


def test_a_data_set_whose_json_is_nested_without_end(tmp_path: Path):
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(CorpusError, match="needs a data set written by save_to_disk; got: RecursionError"):
        read_corpus(tmp_path)
    with pytest.raises(CorpusError, match="needs the JSON that save_to_disk writes; got: RecursionError"):
        corpus_checksum(tmp_path)


def test_a_data_set_with_chosen_rows_is_read_as_chosen(tmp_path: Path):
    import datasets

    data = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"]})
    data.select([3, 1]).save_to_disk(str(tmp_path / "two"))
    assert [example.text for example in read_corpus(tmp_path / "two")] == ["d", "b"]


def test_a_folder_of_splits_names_them(tmp_path: Path):
    import datasets

    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    for read in (read_corpus, corpus_checksum):
        with pytest.raises(
            CorpusError, match=r"both: needs one data set; got a folder of 2 splits\. Name one: "
        ) as error:
            read(tmp_path / "both")
        assert str(tmp_path / "both" / "test") in str(error.value) and "\n" not in str(error.value)
    assert len(read_corpus(tmp_path / "both" / "test")) == 2


def test_the_checksum_of_a_folder_is_that_of_its_data(tmp_path: Path):
    import datasets

    folder = tmp_path / "folder"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(folder))
    before = corpus_checksum(folder)
    listing = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(path.name for path in folder.iterdir())
    )
    assert before == hashlib.sha256(listing.encode()).hexdigest()
    (folder / "cache-1.arrow").write_bytes(b"left by map")
    assert corpus_checksum(str(folder)) == before
    (arrow,) = folder.glob("data-*.arrow")
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    assert corpus_checksum(folder) != before


def test_a_broken_data_set_is_one_line(tmp_path: Path):
    import datasets

    folder = tmp_path / "folder"
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(folder))
    (arrow,) = folder.glob("data-*.arrow")
    arrow.unlink()
    with pytest.raises(CorpusError, match=r"folder: needs a data set written by save_to_disk; got: ") as error:
        read_corpus(folder)
    assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match=r"folder: needs readable data; got: No such file"):
        corpus_checksum(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CorpusError, match=r"state\.json: needs the JSON that save_to_disk writes"):
        corpus_checksum(folder)


def test_reading_a_corpus_is_a_light_import():
    code = "import attnlens.text.corpus, sys; print(sorted({'datasets', 'pyarrow', 'torch'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def corpus_of(documents: list[int]) -> Corpus:
    examples = tuple(Example("text", str(place), str(document)) for place, document in enumerate(documents))
    return Corpus(examples, "made", "0", True)


def test_select_keeps_the_order_asked_for():
    corpus = corpus_of([1, 2, 3]).select([2, 0])
    assert [example.id for example in corpus] == ["2", "0"] and corpus.checksum == "0"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 45), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_sample_spreads_over_the_documents(documents: list[int], limit: int, seed: int):
    corpus = corpus_of(documents)
    sample = corpus.sample(limit, seed)
    places = [int(example.id) for example in sample]
    assert places == sorted(set(places)) and len(places) == min(limit, len(corpus))
    assert sample == corpus.sample(limit, seed)
    assert set(places) <= {int(example.id) for example in corpus.sample(limit + 1, seed)}
    available = Counter(example.document for example in corpus)
    taken = Counter(example.document for example in sample)
    most = max(taken.values())
    for document, count in available.items():
        assert taken[document] >= min(count, most - 1)
    met, turns = Counter[str](), list[tuple[int, int]]()
    for place in np.random.default_rng(seed).permutation(len(corpus)):
        document = corpus.examples[place].document
        turns.append((met[document], place))
        met[document] += 1
    assert places == sorted(place for _, place in sorted(turns, key=lambda turn: turn[0])[:limit])


def test_a_sample_follows_its_seed():
    corpus = corpus_of(list(range(50)))
    assert corpus.sample(10, 0) != corpus.sample(10, 1) and corpus.sample(50, 0) == corpus
    with pytest.raises(CorpusError, match="at least 1 example; got a limit of 0"):
        corpus.sample(0, 0)


def test_cuad_is_read(shared: Path):
    corpus = read_corpus(shared / "data" / "cuad" / "test.jsonl")
    assert len(corpus) == 1355 and corpus.has_documents
    for example in corpus:
        assert example.spans and all(example.text[span.start : span.end].strip() for span in example.spans)


def test_banking77_is_read(shared: Path):
    corpus = read_corpus(shared / "data" / "banking77" / "test.csv", columns={"label": "category"})
    assert len(corpus) == 3080 and len(corpus.labels) == 77 and not corpus.has_documents


def test_the_speeches_are_read_as_passages(shared: Path):
    corpus = read_corpus(shared / "data" / "lm" / "us_inaugural.txt")
    assert len(corpus) > 59 and not corpus.has_documents
    assert all("\n\n" not in example.text for example in corpus)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet", ".txt"])
def test_rows_are_streamed(tmp_path: Path, ending: str):
    """Ten times the rows take no more memory while they pass by."""
    peaks = []
    for count in (5_000, 50_000):
        path = tmp_path / f"{count}{ending}"
        rows = [{"text": f"The tenant pays rent number {number}.", "label": "rent"} for number in range(count)]
        if ending == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif ending == ".txt":
            path.write_text("\n\n".join(row["text"] for row in rows))
        else:
            frame = pd.DataFrame(rows)
            frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
        del rows
        tracemalloc.start()
        assert sum(1 for _ in raw_rows(path, ("text", "label"))) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**20, f"{peaks[0]} bytes for 5,000 rows, {peaks[1]} for 50,000"


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("limit", [1, 7, 40, 90])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_sample_may_be_read_alone(tmp_path: Path, named: bool, limit: int, ending: str):
    path = tmp_path / f"rows{ending}"
    rows = [{"text": f"Clause {number}."} | ({"document": f"d{number % 6}"} if named else {}) for number in range(60)]
    if ending == ".jsonl":
        path.write_text(jsonl(*rows))
    else:
        frame = pd.DataFrame(rows)
        frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
    sample = read_corpus(path, limit=limit, seed=3)
    assert sample == read_corpus(path).sample(limit, 3) and sample.total == 60 and len(sample) == min(limit, 60)
    assert sample.sample(limit, 3) == sample


def test_rows_that_are_not_drawn_take_eight_bytes(tmp_path: Path):
    """And some tens more for a moment, while the sample is drawn."""
    peaks = []
    for count in (5_000, 50_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps({"text": f"The tenant pays rent {n}."}) + "\n" for n in range(count)))
        tracemalloc.start()
        assert len(read_corpus(path, limit=20)) == 20
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 45_000 * 100, f"{peaks[0]} bytes for 5,000 rows, {peaks[1]} for 50,000"


def test_every_row_is_checked_whether_it_is_drawn_or_not(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Clause {number}."}) + "\n" for number in range(50)) + "no JSON\n")
    with pytest.raises(CorpusError, match="row 51: needs one JSON object a line"):
        read_corpus(path, limit=1)


def test_a_file_that_changes_while_it_is_sampled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.txt"
    path.write_text("One.\n\nTwo.\n\nThree.\n")

    def drawn(documents: Sequence[int], limit: int, seed: int) -> list[int]:
        path.write_text("One.\n\nTwo.\n\nFour.\n")
        return [2]

    monkeypatch.setattr("attnlens.text.corpus._drawn", drawn)
    with pytest.raises(CorpusError, match=r"rows\.txt: has changed while it was read"):
        read_corpus(path, limit=1)


@pytest.mark.parametrize("limit", [None, 5])
def test_texts_of_parquet_that_are_not_utf8(tmp_path: Path, limit: int | None):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": ["The tenant pays.", "Two."]}).to_parquet(path)
    path.write_bytes(path.read_bytes().replace(b"The", b"\x80he"))
    with pytest.raises(CorpusError, match=r"rows\.parquet: needs a Parquet file; this one is damaged"):
        read_corpus(path, limit=limit)


def test_a_line_of_ten_megabytes(tmp_path: Path):
    text = "The tenant pays. " * 600_000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": "Two."}) + "\n")
    corpus = read_corpus(tmp_path / "a.jsonl")
    assert len(text) > 10**7 and [each.text for each in corpus] == [text, "Two."]
