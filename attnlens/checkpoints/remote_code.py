"""Code that a checkpoint brings for an architecture of its own: it runs only where that was asked for, and named first.

transformers calls it remote code, wherever it lies: `auto_map` in a config names a module beside it, and a class in
that, for each Auto class.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file

from attnlens.checkpoints.identity import files_sha256, home_free
from attnlens.checkpoints.source import read_json
from attnlens.core.errors import CheckpointError, OwnCode, UnsupportedModel

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
REFERENCE = re.compile(r"([\w.-]+/[\w.-]+--)?\w+\.\w+")  # module.Class, also of another repository
TRUST = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting(on: bool = True) -> Iterator[None]:
    """While it is open, checkpoints may run code that they bring; each says first what it runs.

    on: False changes nothing: it is off, unless another such block is open around this one.
    """
    before = TRUST.set(TRUST.get() or on)
    try:
        yield
    finally:
        TRUST.reset(before)


def trusted() -> bool:
    """Whether such a block is open: what transformers is told as `trust_remote_code`; left alone it would ask."""
    return TRUST.get()


def check_code(where: Path | str) -> None:
    """Say what code of a folder or hub id runs; where none may, OwnCode for one that is another model without it."""
    named = own_classes(where)
    if trusted():
        if named:
            told = ", ".join(f"{reference} as {auto}" for auto, reference in named.items())
            _say(f"running code of {home_free(where)}: {told}")
        return
    described = _read(where, CONFIG)
    saved, known = described.get("architectures") or (), described.get("model_type") in CONFIG_MAPPING
    for auto, reference in named.items():
        kind = reference.rpartition(".")[2]
        if (auto == "AutoConfig" and not known) or (kind in saved and not hasattr(transformers, kind)):
            raise OwnCode(f"{home_free(where)} is no architecture of transformers: {asking(reference)}")


def asking(code: str) -> str:
    """What to do about code that was not run."""
    return f"its own code ({code}) runs only if you ask for it: read it, then add --trust-remote-code"


def own_classes(where: Path | str) -> dict[str, str]:
    """The classes that a checkpoint's configs name as its own: Auto class → module.Class."""
    found = {}
    for file in (CONFIG, TOKENIZER):
        named = _read(where, file).get("auto_map") or {}
        named = named if isinstance(named, dict) else {"AutoTokenizer": named}  # as it was once written
        for auto, references in named.items():
            for reference in references if isinstance(references, list) else [references]:  # a slow and a fast one
                if reference is not None and not REFERENCE.fullmatch(str(reference)):
                    raise CheckpointError(f"{home_free(where)} names code as {reference!r}: needed module.Class")
                found |= {} if reference is None else {auto: reference}
    return found


def own_model(config: Any, auto: str = "AutoModel") -> Any:
    """The class that code of a trusted checkpoint has for this Auto class; None where it has none."""
    reference = (getattr(config, "auto_map", None) or {}).get(auto) if trusted() else None
    if reference is None:
        return None
    from transformers import PreTrainedModel  # takes seconds, and a config needs none

    found = get_class_from_dynamic_module(reference, config.name_or_path)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise UnsupportedModel(f"{reference} of {home_free(config.name_or_path)} is no model of transformers")
    return found


def saved_model(config: Any) -> Any:
    """The class of its own that a trusted checkpoint was saved in; None where it was saved in one of transformers."""
    names = config.architectures or ()
    autos = getattr(config, "auto_map", None) or {}
    saved = [auto for auto, reference in autos.items() if str(reference).rpartition(".")[2] in names]
    if not saved and any(hasattr(transformers, name) for name in names):
        return None
    return own_model(config, saved[0] if saved else "AutoModel")


def code_facts(where: Path | str) -> dict[str, Any] | None:
    """What provenance keeps of code that ran: the classes, and of a folder the SHA-256 over its modules."""
    named = own_classes(where) if trusted() else {}
    if not named:
        return None
    modules = sorted(where.glob("*.py")) if isinstance(where, Path) else []
    return {"classes": named, "sha256": files_sha256(modules) if modules else None}


def _read(where: Path | str, file: str) -> dict[str, Any]:
    """A config of a folder or hub id; empty where it has none."""
    try:
        path = cached_file(str(where), file)
    except OSError:
        return {}
    return {} if path is None else read_json(Path(path))


@cache
def _say(line: str) -> None:
    """Once, however often it is loaded."""
    logging.getLogger("attnlens").warning(line)
