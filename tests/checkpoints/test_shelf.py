"""Tensors read one at a time: the same numbers as stored, planted bad files refused in one line, and no code run."""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attnlens.checkpoints.shelf import Shelf
from attnlens.core.errors import CheckpointError, UnknownName

STATE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16)}
F4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def planted(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with any header over any bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def rewritten(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The same torch file with another pickle in it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


def same(shelf: Shelf, state: dict[str, torch.Tensor]) -> bool:
    return set(shelf.names) == set(state) and all(
        shelf.shape(name) == tuple(tensor.shape)
        and shelf.dtype(name) == tensor.dtype == shelf.read(name).dtype
        and torch.equal(shelf.read(name), tensor)
        for name, tensor in state.items()
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt"])
def test_reads_what_torch_saved(tmp_path: Path, ending: str, legacy: bool):
    torch.save(STATE, tmp_path / f"x{ending}", _use_new_zipfile_serialization=not legacy)
    with Shelf([tmp_path / f"x{ending}"]) as shelf:
        assert same(shelf, STATE)


def test_reads_safetensors_in_shards_and_memory(tmp_path: Path):
    save_file({"a": STATE["a"]}, tmp_path / "1.safetensors", metadata={"format": "pt"})
    save_file({"b": STATE["b"], "none": torch.empty(0, 3)}, tmp_path / "2.safetensors")
    with Shelf([tmp_path / "1.safetensors", tmp_path / "2.safetensors"]) as shelf:
        assert same(shelf, STATE | {"none": torch.empty(0, 3)})
    assert shelf.names == ()
    assert same(Shelf.of(STATE), STATE)
    with pytest.raises(UnknownName, match="unknown tensor 'aa': did you mean 'a'"):
        Shelf.of(STATE).read("aa")


def test_the_real_encoder(minilm: Path):
    with Shelf([minilm / "model.safetensors"]) as shelf:
        assert shelf.shape("embeddings.word_embeddings.weight") == (30522, 384)
        assert shelf.dtype("encoder.layer.0.attention.self.query.weight") == torch.float32


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_training_wrappers_are_taken_off_and_leftovers_ignored(tmp_path: Path, key: str):
    state = STATE | {"steps": 3, "note": "text"}
    torch.save({"epoch": 2, "optimizer": {"lr": 0.1, "state": {0: torch.ones(2)}}, key: state}, tmp_path / "x.ckpt")
    with Shelf([tmp_path / "x.ckpt"]) as shelf:
        assert same(shelf, STATE)


def test_tied_tensors_are_known_in_torch_files_and_memory(tmp_path: Path):
    state = {"in": STATE["a"], "out": STATE["a"], "other": STATE["a"].clone(), "part": STATE["a"][:1]}
    torch.save(state, tmp_path / "x.pt")
    for shelf in (Shelf([tmp_path / "x.pt"]), Shelf.of(state)):
        assert shelf.tied == [("in", "out")]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"", b"", "header is no valid JSON"),
        (b"{not json", b"", "header is no valid JSON"),
        (b"[" * 100_000, b"", "header is no valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "header is no valid JSON"),
        ([1], b"", "header is no JSON object"),
        ({"a": 3}, b"", "a has no dtype, shape and data_offsets"),
        ({"a": F4 | {"shape": [-4]}}, bytes(16), "a has no dtype, shape and data_offsets"),
        ({"a": F4 | {"shape": [True]}}, bytes(16), "a has no dtype, shape and data_offsets"),
        ({"a": F4 | {"data_offsets": [0]}}, bytes(16), "a has no dtype, shape and data_offsets"),
        ({"a": F4 | {"dtype": "F4"}}, bytes(16), "a has the dtype 'F4', which cannot be read"),
        ({"a": F4 | {"dtype": [1]}}, bytes(16), r"a has the dtype \[1\], which cannot be read"),
        ({"a": F4 | {"shape": [10**6, 10**6]}}, bytes(16), "needs 4,000,000,000,000 bytes, its place in the file has"),
        ({"a": F4, "b": F4}, bytes(16), "b begins at byte 0 and overlaps the tensor before it"),
        ({"a": F4 | {"data_offsets": [4, 20]}}, bytes(20), "a begins at byte 4 and leaves a gap before it"),
        ({"a": F4}, bytes(12), "the tensors need 16 bytes, the file has 12 for them"),
        ({"a": F4}, bytes(20), "the tensors need 16 bytes, the file has 20 for them"),
        (
            {"a": F4 | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
            bytes(16),
            "the tensors need 4,000,000,000,000 bytes, the file has 16 for them",
        ),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: object, data: bytes, message: str):
    with pytest.raises(CheckpointError, match=message) as refusal:
        Shelf([planted(tmp_path / "bad.safetensors", header, data)])
    assert "\n" not in str(refusal.value) and str(refusal.value).startswith(str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize("length", [3, 10**9, 2**63])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int):
    with pytest.raises(CheckpointError, match="is no whole safetensors file: its header should have"):
        Shelf([planted(tmp_path / "x.safetensors", b"{}", length=length)])


def test_short_missing_and_doubled_files_are_refused(tmp_path: Path):
    (tmp_path / "short.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="is no whole safetensors file"):
        Shelf([tmp_path / "short.safetensors"])
    for name in ("none.safetensors", "none.pt"):
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            Shelf([tmp_path / name])
    for name in ("1.safetensors", "2.safetensors"):
        save_file(STATE, tmp_path / name)
    with pytest.raises(CheckpointError, match="holds a, which another shard holds too"):
        Shelf([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


class Planted:
    """Loading this would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, legacy: bool):
    bad = {"state_dict": {"a": torch.ones(2), "trap": Planted(tmp_path / "trapped")}}
    torch.save(bad, tmp_path / "x y.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"names code \(\S*open\).*convert it once.*'x y.ckpt'$") as refusal:
        Shelf([tmp_path / "x y.ckpt"])
    assert not (tmp_path / "trapped").exists(), "loading ran the code"
    assert "\n" not in str(refusal.value)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Planted(tmp_path / "trapped")))
    with pytest.raises(CheckpointError):
        Shelf([tmp_path / "plain.bin"])
    assert not (tmp_path / "trapped").exists(), "loading ran the code"


def test_the_conversion_command_of_the_message_works(tmp_path: Path):
    import subprocess
    import sys

    torch.save({"state_dict": STATE, "hyper_parameters": Path("x")}, tmp_path / "it's.ckpt")
    with pytest.raises(CheckpointError, match="names code") as refusal:
        Shelf([tmp_path / "it's.ckpt"])
    command = str(refusal.value).partition("in its folder: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=tmp_path, capture_output=True)
    with Shelf([tmp_path / "it's.ckpt.safetensors"]) as shelf:
        assert same(shelf, STATE)


def wider(content: bytes) -> bytes:
    """A pickle of a tensor of 3 numbers, turned into one that claims 2³⁰."""
    assert content.count(b"K\x03\x85") == 1
    return content.replace(b"K\x03\x85", b"J" + struct.pack("<i", 2**30) + b"\x85")


def test_torch_files_that_lie_are_refused(tmp_path: Path):
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "expanded.pt")
    with pytest.raises(CheckpointError, match=r"a of shape \(1000000, 1000000\) claims more numbers than the file"):
        Shelf([tmp_path / "expanded.pt"])
    torch.save({"a": torch.ones(3)}, tmp_path / "lying.pt")
    with pytest.raises(CheckpointError, match=r"is damaged|claims more numbers than the file"):
        Shelf([rewritten(tmp_path / "lying.pt", wider)])
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "packed.pt")
    with pytest.raises(CheckpointError, match=r"is compressed; torch\.save writes it plain"):
        Shelf([rewritten(tmp_path / "packed.pt", lambda content: content, zipfile.ZIP_DEFLATED)])
    whole = io.BytesIO()
    torch.save(STATE, whole)
    for size in (0, 10, len(whole.getvalue()) // 2):
        (tmp_path / "cut.bin").write_bytes(whole.getvalue()[:size])
        with pytest.raises(CheckpointError, match=r"is damaged, or was not written by torch\.save"):
            Shelf([tmp_path / "cut.bin"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "holds no tensors by name"),
        (torch.ones(3), "holds no tensors by name"),
        ([torch.ones(3)], "holds no tensors by name"),
        ({"a": torch.eye(3).to_sparse()}, "a is no plain tensor"),
        ({"a": torch.ones(3, device="meta")}, "a is no plain tensor"),
    ],
)
def test_torch_files_without_plain_tensors_are_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        Shelf([tmp_path / "x.pt"])
