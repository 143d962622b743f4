"""One byte of what attnlens wrote changes on disk: the same result, or one clear error, never another number.

CI changes a few bytes of each file; ATTNLENS_FUZZ changes that many: 200 for `make fuzz`.
"""

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.parts import _read, _write
from attnlens.analysis.results import open_comparison
from attnlens.checkpoints.identity import read_record
from attnlens.checkpoints.load import load
from attnlens.checkpoints.seal import SUMS, check_seal, read_facts, seal, write_facts
from attnlens.core.errors import AttnlensError, CheckpointError
from attnlens.text.corpus import read_corpus
from attnlens.training.intermediate import last_kept
from attnlens.training.options import TrainOptions
from attnlens.training.train import finetune
from tests.conftest import Tuning

BYTES = min(200, int(os.environ.get("ATTNLENS_FUZZ", "10")))
OPTIONS = TrainOptions(max_steps=6, learning_rate=5e-3, device="cpu")


def changed(folder: Path) -> Iterator[tuple[Path, int]]:
    """Each file under the folder with one byte another one, at several places in turn; it is whole again in the end."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole, draw = path.read_bytes(), random.Random(path.name)
        for place in draw.sample(range(len(whole)), min(BYTES, len(whole))):
            spoilt = bytearray(whole)
            spoilt[place] ^= draw.randrange(1, 256)
            path.write_bytes(spoilt)
            yield path, place
        path.write_bytes(whole)


def held(folder: Path, result: Callable[[], str]) -> int:
    """Every change gives the result of the whole folder, or an error of one line; how many were errors."""
    whole, refused = result(), 0
    for path, place in changed(folder):
        try:
            assert result() == whole, (path, place)
        except AttnlensError:
            refused += 1
    assert result() == whole
    return refused


def digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


@pytest.fixture
def tuned(tuning: Tuning, tmp_path: Path) -> Path:
    return shutil.copytree(tuning.tuned, tmp_path / "tuned.ckpt")


def test_a_changed_byte_in_a_checkpoint(tuned: Path):
    def result() -> str:
        found = load(tuned)
        weights = [part for item in sorted(found.model.state_dict().items()) for part in item]
        ids = [found.tokenizer(text)["input_ids"] for text in ("The tenant pays.", "governing law")]
        return digest(*weights, found.model.config.to_dict(), ids, found.provenance["training"])

    assert held(tuned, result) > len([*tuned.iterdir()])


def test_a_changed_byte_in_a_stored_comparison(tuning: Tuning, tmp_path: Path):
    corpus = read_corpus(tuning.data)
    corpus = replace(corpus, examples=corpus.examples[:6])
    base, tuned = load(tuning.base), load(tuning.tuned)
    compare(base, tuned, corpus=corpus, options=CompareOptions(passages=2)).save(tmp_path)

    def result() -> str:
        found = open_comparison(tmp_path)
        arrays = [array for name in sorted(found.data.variables) for array in (name, found.data[name].values)]
        tables = [table.to_csv() for table in (found.weights, found.heads, found.tests)]
        received = [passage.received for passage in found.passages]
        return digest(*arrays, *tables, *received, found.answers, found.passages[0].words, found.provenance)

    assert held(tmp_path, result) > 50


def test_a_changed_byte_in_a_part_of_a_report(tmp_path: Path):
    """What the disk spoiled is no part of the run: it is measured again."""
    path, part = tmp_path / "000000.npz", {"entropy": np.linspace(0, 1, 50), "identity": np.array("a" * 64)}
    _write(path, part)
    again = 0
    for _ in changed(tmp_path):
        found = _read(path, "a" * 64)
        again += found is None
        assert found is None or all(np.array_equal(found[name], part[name]) for name in part)
    assert again


def test_a_changed_byte_in_the_facts_of_a_study(tmp_path: Path):
    write_facts(tmp_path / "row.json", {"key": "a", "test": {"accuracy": 0.8125, "texts": 64}, "twin": None})
    assert held(tmp_path, lambda: repr(read_facts(tmp_path / "row.json"))) > 0
    (tmp_path / "row.json").write_text("[1]")
    with pytest.raises(AttnlensError, match=r"row.json is damaged: remove .*, and the same command makes it again"):
        read_facts(tmp_path / "row.json")


def test_a_changed_byte_in_an_interrupted_training(tuning: Tuning, tmp_path: Path):
    """A damaged step is not gone on from; the one before it ends with the same bits."""

    def stop(step: int, total: int, logs: dict[str, float]) -> None:
        if step == 11:
            raise KeyboardInterrupt

    def run(**options: object) -> Path:
        settings = replace(OPTIONS, max_steps=12, patience=9, **options)
        return finetune(tuning.base, tuning.data, output=tmp_path / "torn", options=settings).path

    calm = load_file(run() / "model.safetensors")
    shutil.rmtree(tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    steps = tmp_path / ".torn.partial" / "run"
    kept = last_kept(steps)
    assert kept is not None
    for path, place in changed(kept.folder):
        found = last_kept(steps)
        assert found is None or found.folder != kept.folder or found == kept, (path, place)
    for path in (kept.folder / "trained.safetensors", kept.folder / "optimizer.pt"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert last_kept(steps) != kept
        path.write_bytes(whole)
    spoilt = kept.folder / "trained.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    torn = load_file(run(resume=True) / "model.safetensors")
    assert all(torch.equal(calm[name], torn[name]) for name in calm)


def test_a_seal_is_that_of_sha256sum(tmp_path: Path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b c").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    seal(tmp_path)
    seal(tmp_path)  # its own list is no part of it
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's own example
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (tmp_path / SUMS).read_text() == f"{empty}  a\n{abc}  below/b c\n"
    check_seal(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    check_seal(tmp_path / "below" / "b c")
    for place in (tmp_path, tmp_path / "a"):
        with pytest.raises(
            CheckpointError, match=r"a has changed since it was written \(its sha256 is not that in SHA"
        ):
            check_seal(place)
    (tmp_path / "a").unlink()
    check_seal(tmp_path)


def test_a_strangers_list_is_asked_about_its_own_folder_alone(tmp_path: Path):
    """No file elsewhere is read for it, and what is no line of it says nothing."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"1")
    (folder / SUMS).write_bytes(f"{'0' * 64}  ../secret\n{'0' * 64}  {tmp_path}/secret\n\xff\n# a remark\n".encode())
    check_seal(folder)


def test_a_damaged_checkpoint_is_not_complete(tuning: Tuning, tmp_path: Path):
    """`--resume` does not call it so, and its record is not believed."""
    output = tmp_path / "tuned.ckpt"
    finetune(tuning.base, tuning.data, output=output, options=OPTIONS)
    record = output / "attnlens.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert read_record(output) is not None
    with pytest.raises(CheckpointError, match=r"attnlens.json has changed since it was written"):
        finetune(tuning.base, tuning.data, output=output, options=replace(OPTIONS, resume=True))
