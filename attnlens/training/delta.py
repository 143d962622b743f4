"""A tuned checkpoint without what it shares with its base: only the tensors that training changed are kept.

After `alf` these are the blocks that were ever chosen, and the head (FINETUNING.md 4.4); of a method that freezes less,
more. The file names its base by checksum, and gives back every tensor bit for bit.
"""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnlens.checkpoints.identity import home_free, weights_sha256
from attnlens.checkpoints.seal import SUMS, check_seal, seal
from attnlens.core.errors import CheckpointError, OutputExists

DELTA = "delta.safetensors"
WEIGHTS = "model.safetensors"


def save_delta(base: str | Path, tuned: str | Path, output: str | Path) -> Path:
    """Write to the new folder `output` what `tuned` has and `base` has not; config, tokenizer and record are copied.

    Tensors are told apart by their bytes, so that a prefix before the names does not matter.
    """
    source = Path(tuned).expanduser()
    known = {_digest(tensor): name for name, tensor in _tensors(base).items()}
    own, shared = dict[str, Tensor](), dict[str, str]()
    for name, tensor in _tensors(source).items():
        found = known.get(_digest(tensor))
        if found is None:
            own[name] = tensor
        else:
            shared[name] = found
    folder = _new(output)
    _copy_rest(source, folder)
    facts = {"format": "pt", "base_sha256": weights_sha256(Path(base).expanduser()), "shared": json.dumps(shared)}
    save_file(own, folder / DELTA, facts)
    seal(folder)
    return folder


def apply_delta(base: str | Path, delta: str | Path, output: str | Path) -> Path:
    """Write the whole checkpoint to the new folder `output`: the tensors of `delta`, the others from `base`."""
    source = Path(delta).expanduser()
    path = source / DELTA
    if not path.is_file():
        raise CheckpointError(f"{home_free(source)} holds no {DELTA}: needed a folder that save_delta wrote.")
    check_seal(source)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    sha256 = weights_sha256(Path(base).expanduser())
    if sha256 != facts["base_sha256"]:
        raise CheckpointError(
            f"{home_free(base)} has the checksum {sha256[:12]}…, {home_free(path)} belongs to a base with "
            f"{facts['base_sha256'][:12]}…: give the base that was fine-tuned."
        )
    before, folder = _tensors(base), _new(output)
    tensors = load_file(path) | {name: before[place].clone() for name, place in json.loads(facts["shared"]).items()}
    _copy_rest(source, folder)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    seal(folder)
    return folder


def _tensors(checkpoint: str | Path) -> dict[str, Tensor]:
    folder = Path(checkpoint).expanduser()
    check_seal(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{home_free(folder)} holds no *.safetensors: needed a checkpoint saved as safetensors.")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def _digest(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return hashlib.sha256(head + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()


def _new(output: str | Path) -> Path:
    folder = Path(output).expanduser()
    if folder.exists():
        raise OutputExists(f"{home_free(folder)} exists: needed the name of a new folder.")
    folder.mkdir(parents=True)
    return folder


def _copy_rest(source: Path, folder: Path) -> None:
    """All files but weights, their index and their checksums."""
    for path in source.iterdir():
        if path.is_file() and ".safetensors" not in path.name and path.name != SUMS:
            shutil.copy(path, folder)
