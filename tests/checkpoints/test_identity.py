"""Checksums against hashlib's published numbers; paths without the home directory."""

import hashlib
from pathlib import Path

import pytest

from attnlens.checkpoints.identity import BLOCK, RECORD, files_sha256, home_free, read_record, weights_sha256
from attnlens.core.errors import CheckpointError

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_the_sha256_of_a_file_is_the_published_number(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files_sha256([tmp_path / "abc"]) == ABC


def test_weights_are_read_in_the_order_of_their_names(tmp_path: Path):
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"c")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"ab")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"older copy")
    assert weights_sha256(tmp_path) == ABC


def test_bin_files_count_where_there_are_no_safetensors(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"abc")
    (tmp_path / "training_args.bin").write_bytes(b"settings")
    assert weights_sha256(tmp_path) == ABC


def test_large_files_are_read_to_the_end(tmp_path: Path):
    content = bytes(range(256)) * (BLOCK // 256) + b"tail"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weights_sha256(tmp_path) == hashlib.sha256(content).hexdigest()


def test_a_directory_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors and no \*\.bin: needed a checkpoint"):
        weights_sha256(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_training_record_that_is_no_json(tmp_path: Path, content: bytes):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON .*: remove it or train again"):
        read_record(tmp_path)


def test_home_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_free(tmp_path / "runs" / "a") == "~/runs/a"
    assert Path(home_free(tmp_path / "runs" / "a")).expanduser() == tmp_path / "runs" / "a"
    assert home_free(tmp_path) == "~"
    assert home_free("/data/x") == "/data/x"
    assert home_free("runs/a") == "runs/a"
    assert home_free(f"{tmp_path}-other/x") == f"{tmp_path}-other/x"


def test_a_machine_without_home_hides_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/")
    assert home_free("/data/x") == "/data/x"
