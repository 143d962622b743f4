"""One byte of what attnlens wrote changes on disk: the same result, or one clear error, never another number.

CI changes a few bytes of each file; ATTNLENS_FUZZ changes that many: 200 for `make fuzz`.
"""

import hashlib
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attnlens.analysis.compare import CompareOptions, compare
from attnlens.analysis.parts import _read, _write
from attnlens.analysis.results import open_comparison
from attnlens.checkpoints.identity import _remembered, read_record
from attnlens.checkpoints.load import load
from attnlens.checkpoints.seal import SUMS, check_seal, read_facts, seal, write_facts
from attnlens.core.errors import AttnlensError, CheckpointError, Damaged
from attnlens.text.corpus import read_corpus
from attnlens.training.intermediate import last_kept, steps_kept
from attnlens.training.options import TrainOptions
from attnlens.training.train import TrainingResult, finetune
from tests.conftest import Tuning
from tests.show.synthetic import make_comparison

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
            _remembered.cache_clear()  # clocks of older kernels do not tell two writes within milliseconds apart
            yield path, place
        path.write_bytes(whole)
        _remembered.cache_clear()


def held(folder: Path, result: Callable[[], str]) -> int:
    """Every change gives the result of the whole folder, or an error; how many lines the errors have."""
    whole, refused = result(), 0
    for path, place in changed(folder):
        try:
            assert result() == whole, (path, place)
        except AttnlensError as error:
            refused += len(str(error).splitlines())
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


def test_a_file_that_is_missing_in_a_stored_comparison(tmp_path: Path):
    """Zarr takes a chunk that is not there for one without data."""
    make_comparison(shape=(2, 2)).save(tmp_path)
    chunk = next(path for path in (tmp_path / "comparison.zarr" / "focus").iterdir() if not path.name.startswith("."))
    chunk.unlink()
    with pytest.raises(
        CheckpointError, match=r"focus/\S+ is missing, which SHA256SUMS names: make it or copy it again"
    ):
        open_comparison(tmp_path)


def test_a_changed_byte_in_a_part_of_a_report(tmp_path: Path):
    """What the disk spoiled is no part of the run: it is measured again. Every byte, in two ways."""
    path, part = tmp_path / "000000.npz", {"entropy": np.linspace(0, 1, 50), "identity": np.array("a" * 64)}
    _write(path, part)
    whole, again = path.read_bytes(), 0
    for place, bits in product(range(len(whole)), (0x20, 0xFF)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        found = _read(path, "a" * 64)
        again += found is None
        assert found is None or all(np.array_equal(found[name], part[name]) for name in part)
    assert again > len(whole)


def test_a_changed_byte_in_the_facts_of_a_study(tmp_path: Path):
    write_facts(tmp_path / "row.json", {"key": "a", "test": {"accuracy": 0.8125, "texts": 64}, "twin": None})
    assert held(tmp_path, lambda: repr(read_facts(tmp_path / "row.json"))) > 0
    (tmp_path / "row.json").write_text("[1]")
    with pytest.raises(AttnlensError, match=r"row.json is damaged: remove .*, and the same command makes it again"):
        read_facts(tmp_path / "row.json")


@pytest.fixture
def torn(tuning: Tuning, tmp_path: Path) -> Callable[..., TrainingResult]:
    """A training in `torn`, at a rate at which an early step stays the best; told `stop`, interrupted at step 20."""

    def stop(step: int, total: int, logs: dict[str, float]) -> None:
        if step == 20:
            raise KeyboardInterrupt

    def run(*, interrupted: bool = False, **options: Any) -> TrainingResult:
        chosen = replace(OPTIONS, max_steps=24, patience=9, learning_rate=0.5, **options)
        chosen = replace(chosen, progress=stop) if interrupted else chosen
        return finetune(tuning.base, tuning.data, output=tmp_path / "torn", options=chosen)

    return run


def test_a_changed_byte_in_an_interrupted_training(
    torn: Callable[..., TrainingResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A damaged step is not gone on from; the one before it ends with the same bits, and that is said."""
    calm = load_file(torn().path / "model.safetensors")
    shutil.rmtree(tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        torn(interrupted=True)
    steps = tmp_path / ".torn.partial" / "run"
    kept, best = last_kept(steps), min(steps_kept(steps))
    assert kept is not None and best < kept.step
    for path, place in changed(kept.folder):
        found = last_kept(steps)
        assert found is not None and (found.step == best or found == kept), (path, place)
    for name in ("trained.safetensors", "state.json", "optimizer.pt"):
        path = kept.folder / name
        whole = path.read_bytes()
        path.unlink()
        assert (found := last_kept(steps)) is not None and found.step == best
        path.write_bytes(whole)
    assert last_kept(steps) == kept
    (kept.folder / "trained.safetensors").write_bytes(b"")
    caplog.clear()
    result = torn(resume=True)
    assert result.note == f"resumed from step {best}"
    assert any(
        f"written (its sha256 is not that in SHA256SUMS): going on from step {best}" in m for m in caplog.messages
    )
    got = load_file(result.path / "model.safetensors")
    assert all(torch.equal(calm[name], got[name]) for name in calm)


def test_a_training_of_which_no_step_is_whole(torn: Callable[..., TrainingResult], tmp_path: Path):
    """Its best step is damaged, and what came after rests on it: told before any work, and nothing is removed."""
    with pytest.raises(KeyboardInterrupt):
        torn(interrupted=True)
    steps = tmp_path / ".torn.partial" / "run"
    best = steps / f"checkpoint-{min(steps_kept(steps))}"
    (best / "trained.safetensors").write_bytes(b"")
    before = sorted(path for path in steps.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no step of the interrupted run is whole any more \(.*: --force without"
    ):
        torn(resume=True)
    assert sorted(path for path in steps.rglob("*")) == before
    assert torn(force=True).note == ""


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


def test_every_error_passes_between_processes():
    """Such as a damaged file that a pool of processes meets."""
    tree = [AttnlensError]
    for kind in tree:
        tree += kind.__subclasses__()
    assert Damaged in tree
    for kind in tree:
        there = pickle.loads(pickle.dumps(kind("it has changed")))
        assert (type(there), str(there)) == (kind, "it has changed")
    there = pickle.loads(pickle.dumps(Damaged("it has\nchanged", "copy it")))
    assert (str(there), there.fault) == (r"it has\nchanged: copy it", r"it has\nchanged")
