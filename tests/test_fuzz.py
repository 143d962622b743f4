"""Files of strangers, with any bytes: each is read as what it says or refused in one line; nothing else may happen.

CI draws a few hundred of each; `make fuzz` draws 100,000. What once failed stands below as an example.
"""

import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from attnlens.checkpoints.shelf import Shelf
from attnlens.core.errors import AttnlensError, CheckpointError, CorpusError
from attnlens.text.corpus import read_corpus

INPUTS = int(os.environ.get("ATTNLENS_FUZZ", "300"))
many = settings(
    max_examples=INPUTS,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def parquet() -> bytes:
    file = io.BytesIO()
    pd.DataFrame({"text": ["The tenant pays.", "Two."], "label": ["rent", "a"]}).to_parquet(file)
    return file.getvalue()


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file)
    return file.getvalue()


WHOLE = {".safetensors": save(STATE), ".pt": torch_file()}
ROWS = {
    ".jsonl": b'{"text": "The tenant pays.", "label": "rent", "spans": [{"start": 4, "end": 10}]}\n{"text": "Two."}\n',
    ".csv": b'text,label,document\n"The tenant, he pays.",rent,1\nTwo.,"a ""b""",2\n',
    ".txt": b"One passage.\nStill the first.\n\nAnother passage.\n",
    ".parquet": parquet(),
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file with a few places overwritten, cut out, doubled or filled with anything."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        gone = draw(st.integers(0, 9))
        content[at : at + gone] = draw(st.binary(max_size=9))
    return bytes(content)


def anything(whole: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(whole), st.binary(max_size=200), st.integers(0, len(whole)).map(lambda end: whole[:end]))


def one_line(error: AttnlensError) -> None:
    assert str(error).strip() and len(str(error)) < 2000


def read_shelf(path: Path) -> None:
    """Every tensor of the file, as its header promised, or the refusal of all of it."""
    try:
        with Shelf([path]) as shelf:
            for name in shelf.names:
                tensor = shelf.read(name)
                assert (tuple(tensor.shape), tensor.dtype) == (shelf.shape(name), shelf.dtype(name))
                assert tensor.numel() * tensor.itemsize <= path.stat().st_size
                tensor.clone()  # all of its bytes are there
    except CheckpointError as error:
        one_line(error)


@given(content=anything(WHOLE[".safetensors"]))
@many
def test_any_safetensors_file(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    read_shelf(path)


@given(content=anything(WHOLE[".pt"]))
@example(content=WHOLE[".pt"].replace(b"PK\x06\x07\x00", b"PK\x06\x07\x01"))  # an archive of several disks
@many
def test_any_torch_file(tmp_path: Path, content: bytes):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    read_shelf(path)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-4, 2**70), st.floats(allow_nan=False), st.text(max_size=5))
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "I8", "U64", "F4", ""]) | SCALARS},
    optional={
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), max_size=3) | JSON,
    },
)


@given(header=st.dictionaries(st.text(max_size=3), ENTRIES | JSON, max_size=3), data=st.binary(max_size=40))
@many
def test_any_header(tmp_path: Path, header: dict, data: bytes):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    read_shelf(path)


@pytest.mark.parametrize("ending", ROWS)
def test_any_file_of_texts(tmp_path: Path, ending: str):
    path = tmp_path / f"x{ending}"

    @given(content=anything(ROWS[ending]))
    @example(content=b"\xef\xbb\xbf" + ROWS[ending].replace(b"\n", b"\r\n"))
    @example(content=ROWS[ending].replace(b"T", b"\x00"))
    @example(content=ROWS[ending].replace(b"The", b"\x00\x80 "))
    @example(content=ROWS[ending].replace(b"label", b"\x80abel"))
    @many
    def read(content: bytes) -> None:
        path.write_bytes(content)
        try:
            corpus = read_corpus(path)
        except CorpusError as error:
            one_line(error)
        else:
            assert len(corpus) > 0 and all(each.text.strip() for each in corpus)
            for each in corpus:
                assert all(0 <= span.start < span.end <= len(each.text) for span in each.spans or ())

    read()
