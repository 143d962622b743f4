"""Load a checkpoint: none of its code runs, nothing is silently random, and its attention is proved."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attnlens.checkpoints.identity import home_free, weights_sha256
from attnlens.checkpoints.proof import prove
from attnlens.core.errors import CheckpointError, UnknownName, UnsupportedModel

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer, its name, and where it came from.

    provenance: path (home written as ~), sha256 of the weights, architecture, model type, dtype, parameters, proof.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    provenance: dict[str, Any]

    def __str__(self) -> str:
        """One line: name, architecture, size, dtype."""
        facts = self.provenance
        return f"{self.name}: {facts['architecture']}, {facts['parameters']:,} parameters, {facts['dtype']}"


def load(
    source: str | Path,
    *,
    name: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
) -> Checkpoint:
    """Load a Hugging Face directory or hub id, in evaluation mode, and prove its attention on a small batch.

    name: what reports call it; default the folder's name or the hub id. tokenizer: used where the checkpoint has no
    tokenizer files of its own. dtype: "float32", "bfloat16" or "float16"
    to load in; default as stored. Raises CheckpointError for what is missing or does not fit, UnsupportedModel where
    attention cannot be measured exactly. No code of the checkpoint is ever run.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName.among("dtype", dtype, DTYPES)
    _check_device(device)
    where = locate(source)
    config = read_config(where)
    model = _model(where, config, "auto" if dtype is None else DTYPES[dtype]).to(device).eval()  # pyright: ignore[reportArgumentType]
    facts = {
        "path": home_free(where),
        "sha256": weights_sha256(where) if isinstance(where, Path) else None,
        "revision": getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "proof": prove(model).summary,
    }
    name = name or (where.resolve().name if isinstance(where, Path) else where)
    return Checkpoint(model, _tokenizer(where, tokenizer), name, facts)


def locate(source: str | Path) -> Path | str:
    """The directory of a checkpoint, or its hub id; CheckpointError for anything else."""
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            raise CheckpointError(f"{source} is a PEFT adapter; merge it into its base and save the whole model first")
        if not (path / "config.json").exists():
            raise CheckpointError(f"{source} holds no config.json: needed a Hugging Face checkpoint directory")
        return path
    if path.exists():
        raise CheckpointError(f"{source} is a file: needed a Hugging Face checkpoint directory or a hub id")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source) or source.startswith("."):
        raise CheckpointError(f"{source} does not exist: needed a Hugging Face checkpoint directory or a hub id")
    return source


def read_config(where: Path | str) -> Any:
    """The configuration, without running code of the checkpoint."""
    if isinstance(where, str):
        check_hub(where)
    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(where, str):
            raise CheckpointError(f"{where} is no folder here, and no such model could be had from the hub") from error
        raise CheckpointError(f"{home_free(where)}/config.json cannot be used: {_first_line(error)}") from error


def check_hub(name: str) -> None:
    """CheckpointError for a hub id that is neither in the local cache nor at the hub.

    transformers would ask six times, for half a minute, where a mistyped folder or a missing network is the cause.
    """
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)
    except Exception as error:  # its errors have no common root below Exception
        raise CheckpointError(f"{name} is no folder here, and no such model could be had from the hub") from error


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # what torch raises for an absent and for an unknown device
        raise CheckpointError(f"device {device} cannot be used here: {_first_line(error)}") from error


def _model(where: Path | str, config: Any, dtype: Any) -> PreTrainedModel:
    """The model in the architecture it was saved in, all backbone weights present."""
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{where} is an encoder–decoder model; attnlens cannot compare those yet")
    names = config.architectures or []
    architecture = getattr(transformers, names[0], None) if names else None
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        architecture = transformers.AutoModel
    try:
        loaded: Any = architecture.from_pretrained(
            where, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the weights of {where} cannot be loaded: {_first_line(error)}") from error
    backbone = model.base_model_prefix + "."
    has_head = model.base_model is not model
    missing = [
        name
        for name in sorted(report["missing_keys"])
        if (name.startswith(backbone) or not has_head) and "pooler" not in name
    ]
    if missing:
        raise CheckpointError(
            f"{where} lacks {len(missing)} backbone weights, the first is {missing[0]}; they would be random"
        )
    return model


def _tokenizer(where: Path | str, fallback: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if isinstance(where, Path) and not any((where / name).exists() for name in TOKENIZER_FILES):
        if fallback is None:
            raise CheckpointError(f"{home_free(where)} has no tokenizer files ({', '.join(TOKENIZER_FILES)})")
        return fallback
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the tokenizer of {where} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
