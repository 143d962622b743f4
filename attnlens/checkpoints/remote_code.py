"""Code that a checkpoint brings for an architecture of its own: it runs only where that was asked for, and named first.

transformers calls it remote code, wherever it lies: `auto_map` in a config names a module beside it, or in another hub
repository, and a class in that, for each Auto class.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files
from transformers.utils.hub import cached_file

from attnlens.checkpoints.identity import file_sha256, home_free
from attnlens.checkpoints.source import read_json
from attnlens.core.errors import CheckpointError, OwnCode, UnsupportedModel, printable

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
AUTO, REFERENCE = re.compile(r"Auto\w+"), re.compile(r"([\w.-]+/[\w.-]+--)?(\w+)\.(\w+)")
TRUST = ContextVar("trust_remote_code", default=False)


@contextmanager
def trusting(on: bool = True) -> Iterator[None]:
    """While it is open, checkpoints may run code that they bring, after saying so; with `on` False they may not."""
    before = TRUST.set(on)
    try:
        yield
    finally:
        TRUST.reset(before)


def trusted() -> bool:
    """Whether code of checkpoints may run: `trust_remote_code` of transformers, which would ask if it was not told."""
    return TRUST.get()


def faults() -> tuple[type[BaseException], ...]:
    """What a faulty checkpoint makes the libraries raise; code of its own may raise anything."""
    return (Exception, SystemExit) if trusted() else (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def check_code(where: Path | str) -> None:
    """Say which code of a folder or hub id runs, or is left alone; OwnCode where it is another model without."""
    named = own_classes(where)
    if not named:
        return
    shown = home_free(where)
    if trusted():
        told = ", ".join(f"{reference} as {auto}" for auto, reference in named.items())
        _say(f"running code of {shown}: {told}", json.dumps(_modules(where, named)))
        return
    if (needed := _needed(named, _read(where, CONFIG))) is not None:
        raise OwnCode(f"{shown} is no architecture of transformers: {asking(needed)}")
    _say(f"code of {shown} is not run: what transformers has under that name takes its place")


def asking(code: str) -> str:
    """What to do about code that was not run."""
    return f"its own code ({code}) runs only if you ask for it: read it, then add --trust-remote-code"


def own_classes(where: Path | str) -> dict[str, str]:
    """The classes that a checkpoint's configs name as its own: Auto class → [owner/name--]module.Class."""
    described, shown = _read(where, CONFIG), home_free(where)
    architectures = described.get("architectures") or []
    if not (isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)):
        raise CheckpointError(f"{shown}/{CONFIG} cannot be used: its architectures are no list of names")
    if not isinstance(described.get("model_type", ""), str):
        raise CheckpointError(f"{shown}/{CONFIG} cannot be used: its model_type is no name")
    if _has_inner(described):
        raise CheckpointError(f"{shown}/{CONFIG} names code for a part of the model (auto_map inside it): refused")
    maps = [_read(where, file).get("auto_map", {}) for file in (CONFIG, TOKENIZER)]
    if isinstance(maps[1], list):  # as it was once written
        maps[1] = {"AutoTokenizer": maps[1]}
    if not all(isinstance(one, dict) for one in maps):
        raise CheckpointError(f"{shown} has an auto_map that is no JSON object: refused")
    found = {auto: reference for auto, reference in maps[0].items() if auto != "AutoTokenizer"}
    if (pair := maps[1].get("AutoTokenizer")) is not None:  # a slow one and a fast one, which goes first
        slow, fast = pair if isinstance(pair, list) and len(pair) == 2 else (None, pair)
        found["AutoTokenizer"] = slow if fast is None else fast
    for auto, reference in found.items():
        if not (AUTO.fullmatch(auto) and isinstance(reference, str) and REFERENCE.fullmatch(reference)):
            raise CheckpointError(f"{shown} names code as {auto!r}: {reference!r}: needed module.Class")
    return found


def own_model(config: Any, auto: str) -> Any:
    """The class that code of a trusted checkpoint has for this Auto class; None where it has none."""
    reference = (getattr(config, "auto_map", None) or {}).get(auto) if trusted() else None
    if reference is None:
        return None
    shown = f"{reference} of {home_free(config.name_or_path)}"
    try:
        found = get_class_from_dynamic_module(reference, config.name_or_path)
    except faults() as error:
        raise CheckpointError(f"{shown} cannot be loaded: {_told(error)}") from error
    if not _is_model(found):
        raise UnsupportedModel(f"{shown} is no model of transformers' kind")
    found.register_for_auto_class(auto)  # so that its code is saved with it
    return found


def saved_model(config: Any) -> Any:
    """The class of its own that a trusted checkpoint was saved in; None where it was saved in one of transformers."""
    models = _models(getattr(config, "auto_map", None) or {})
    names = config.architectures or ()
    saved = [auto for auto, reference in models.items() if reference.rpartition(".")[2] in names]
    if not models or (not saved and _is_known(names)):
        return None
    return own_model(config, saved[0] if saved else next(iter(models)))


def code_facts(*places: Path | str | None) -> dict[str, Any] | None:
    """What provenance keeps of code in these folders or hub ids: whether it ran, its classes, its modules' SHA-256."""
    classes, modules = dict[str, str](), dict[str, str]()
    for where in dict.fromkeys(place for place in places if place is not None):
        named = own_classes(where)
        classes |= named
        modules |= _modules(where, named) if trusted() else {}
    return {"ran": trusted(), "classes": classes, "modules": modules} if classes else None


def _needed(named: Mapping[str, str], described: Mapping[str, Any]) -> str | None:
    """The class without which a checkpoint would be refused by transformers, or read as another model."""
    if "AutoConfig" in named and described.get("model_type") not in CONFIG_MAPPING:
        return named["AutoConfig"]
    models = _models(named)
    return None if not models or _is_known(described.get("architectures") or ()) else next(iter(models.values()))


def _models(named: Mapping[str, str]) -> dict[str, str]:
    return {auto: reference for auto, reference in named.items() if auto.startswith("AutoModel")}


def _is_known(names: list[str] | tuple[()]) -> bool:
    """Whether transformers has a model of one of these names."""
    return any(_is_model(getattr(transformers, name, None)) for name in names)


def _is_model(found: Any) -> bool:
    from transformers import PreTrainedModel  # takes seconds, and a config needs none

    return isinstance(found, type) and issubclass(found, PreTrainedModel)


def _has_inner(described: Mapping[str, Any]) -> bool:
    """Whether a part of a config names code: transformers would ask for it on the terminal."""
    parts = list(described.values())
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and "auto_map" in part:
            return True
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return False


def _modules(where: Path | str, named: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of the modules that hold the classes, and of those that they import from beside them."""
    found = dict[str, str]()
    for reference in named.values():
        owner, module, _ = REFERENCE.fullmatch(reference).groups("")  # pyright: ignore[reportOptionalMemberAccess]
        try:
            path = str(cached_file(owner.removesuffix("--") or str(where), f"{module}.py"))
            files = [Path(file) for file in (path, *get_relative_import_files(path))]
            found |= {f"{owner}{file.name}": file_sha256(file) for file in files}
        except (OSError, ValueError):  # transformers will say what is missing
            continue
    return found


def _read(where: Path | str, file: str) -> dict[str, Any]:
    """A config of a folder or hub id; empty where it has none."""
    try:
        path = cached_file(str(where), file)
    except OSError:
        return {}
    return {} if path is None else read_json(Path(path))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@cache
def _say(line: str, modules: str = "") -> None:
    """Once, however often it is loaded with the same modules."""
    logging.getLogger("attnlens").warning(printable(line))
