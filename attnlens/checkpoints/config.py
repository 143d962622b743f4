"""A checkpoint's config.json, read without running any code of it, unless that was asked for."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.remote_code import asking, check_code, faults, trusted
from attnlens.checkpoints.source import check_hub
from attnlens.core.errors import CheckpointError


def read_config(where: Path | str) -> Any:
    """The configuration; OwnCode where it takes code of the checkpoint that may not run."""
    if isinstance(where, str):
        check_hub(where)
    check_code(where)
    try:
        return AutoConfig.from_pretrained(where, trust_remote_code=trusted())
    except faults() as error:
        if isinstance(where, str) and not trusted():
            raise CheckpointError(f"{where} is no folder here, and no such model could be had from the hub") from error
        raise CheckpointError(f"{home_free(where)}/config.json cannot be used: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or its kind where it says nothing."""
    if "trust_remote_code=True" in str(error) and not trusted():
        return asking("of its tokenizer or head")
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
