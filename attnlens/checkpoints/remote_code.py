"""Code that a checkpoint brings for an architecture of its own: it runs only where that was asked for, and named first.

transformers calls it remote code, wherever it lies: `auto_map` in a config names a module beside it, or in another hub
repository, and a class in that, for each Auto class. Once this is imported, transformers raises where it would ask on
the terminal whether other code may run.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, dynamic_module_utils
from transformers.utils.hub import cached_file

from attnlens.checkpoints.identity import file_sha256, home_free
from attnlens.checkpoints.source import read_json
from attnlens.core.errors import AttnlensError, CheckpointError, OwnCode, UnsupportedModel, printable

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
AUTO, REFERENCE = re.compile(r"Auto\w+"), re.compile(r"([\w.-]+/[\w.-]+--)?(\w+)\.(\w+)")
TRUST = ContextVar("trust_remote_code", default=False)
MODULES = "transformers_modules"  # the package that transformers puts such code into
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds that it would wait for an answer


@contextmanager
def trusting(on: bool = True) -> Iterator[None]:
    """While it is open, checkpoints may run code that they bring, after saying so; with `on` False they may not.

    What that code raises is a CheckpointError.
    """
    before = TRUST.set(on)
    try:
        yield
    except AttnlensError:
        raise
    except (Exception, SystemExit) as error:
        if (module := _culprit(error)) is None:
            raise
        raise CheckpointError(f"{module}, code of a checkpoint, failed: {_told(error)}") from error
    finally:
        TRUST.reset(before)


def trusted() -> bool:
    """Whether code of checkpoints may run: `trust_remote_code` of transformers, which would ask if it was not told."""
    return TRUST.get()


def faults() -> tuple[type[BaseException], ...]:
    """What a faulty checkpoint makes the libraries raise; code of its own may raise anything."""
    return (Exception, SystemExit) if trusted() else (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def check_code(where: Path | str, *, tokenizer: bool = False) -> None:
    """Say which code of a folder or hub id runs, or is left alone; OwnCode where its model is another one without.

    tokenizer: only that is wanted of it.
    """
    named = own_classes(where)
    shown = home_free(where)
    if trusted() and named:
        told = ", ".join(f"{reference} as {auto}" for auto, reference in named.items())
        _say(f"running code of {shown}: {told}", json.dumps(_modules(where, named)))
    elif not tokenizer and (needed := _needed(named, _read(where, CONFIG))) is not None:
        raise OwnCode(f"{shown} is no architecture of transformers: {asking(needed)}")
    elif "AutoTokenizer" in named if tokenizer else named:
        _say(f"code of {shown} is not run: what transformers has under that name takes its place")


def asking(code: str) -> str:
    """What to do about code that was not run."""
    return f"its own code ({code}) runs only if you ask for it: read it, then add --trust-remote-code"


def own_classes(where: Path | str) -> dict[str, str]:
    """The classes of its own that a checkpoint would load as: Auto class → [owner/name--]module.Class."""
    described, shown = _read(where, CONFIG), home_free(where)
    architectures = described.get("architectures") or []
    if not (isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)):
        raise CheckpointError(f"{shown}/{CONFIG} cannot be used: its architectures are no list of names")
    if not isinstance(described.get("model_type", ""), str):
        raise CheckpointError(f"{shown}/{CONFIG} cannot be used: its model_type is no name")
    if _has_inner(described):
        raise OwnCode(f"{shown}/{CONFIG} names code for a part of the model (auto_map inside it): refused")
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
    models = _models(found, architectures)
    return {auto: reference for auto, reference in found.items() if auto in models or not _is_for_model(auto)}


def own_model(config: Any, auto: str) -> Any:
    """The class that code of a trusted checkpoint has for this Auto class; None where transformers' own is meant.

    UnsupportedModel where the architecture is its own and there is none: transformers' would be another model.
    """
    if not trusted():
        return None
    names, shown = config.architectures or (), home_free(config.name_or_path)
    models = _models(getattr(config, "auto_map", None) or {}, names)
    if auto not in models:
        if (models and not _is_known(names)) or type(config).__module__.startswith(MODULES):
            raise UnsupportedModel(f"{shown} is an architecture of its own, whose code has no {auto}")
        return None
    try:
        found = dynamic_module_utils.get_class_from_dynamic_module(models[auto], config.name_or_path)
    except faults() as error:
        raise CheckpointError(f"{models[auto]} of {shown} cannot be loaded: {_told(error)}") from error
    if not _is_model(found):
        raise UnsupportedModel(f"{models[auto]} of {shown} is no model of transformers' kind")
    found.register_for_auto_class(auto)  # so that its code is saved with it
    return found


def saved_model(config: Any) -> Any:
    """The class of its own that a trusted checkpoint was saved in; None where it was saved in one of transformers."""
    names = config.architectures or ()
    models = _models(getattr(config, "auto_map", None) or {}, names)
    saved = [auto for auto, reference in models.items() if _class_name(reference) in names[:1]]
    return own_model(config, (saved or sorted(models, key=lambda auto: auto != "AutoModel") or ["AutoModel"])[0])


def code_facts(*places: Path | str) -> list[dict[str, Any]] | None:
    """What provenance keeps of code in these folders or hub ids: whether it ran, its classes, its modules' SHA-256."""
    found = []
    for where in places:
        if named := own_classes(where):
            modules = _modules(where, named) if trusted() else {}
            found.append({"ran": trusted(), "classes": named, "modules": modules})
    return found or None


def _needed(named: Mapping[str, str], described: Mapping[str, Any]) -> str | None:
    """The class without which a checkpoint would be refused by transformers, or read as another model."""
    if "AutoConfig" in named and described.get("model_type") not in CONFIG_MAPPING:
        return named["AutoConfig"]
    names = described.get("architectures") or ()
    models = _models(named, names)
    return None if not models or _is_known(names) else next(iter(models.values()))


def _models(named: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The classes for models; none where the first of `names` is a class of transformers, and not also its own."""
    models = {auto: reference for auto, reference in named.items() if _is_for_model(auto)}
    is_own = any(_class_name(reference) in names[:1] for reference in models.values())
    return models if models and (is_own or not _is_known(names)) else {}


def _is_for_model(auto: str) -> bool:
    return auto.startswith("AutoModel")


def _class_name(reference: str) -> str:
    return reference.rpartition(".")[2]


def _is_known(names: Sequence[str]) -> bool:
    """Whether transformers has a model of the first of these names, which is the one that counts."""
    return any(_is_model(getattr(transformers, name, None)) for name in names[:1])


def _is_model(found: Any) -> bool:
    from transformers import PreTrainedModel  # takes seconds, and a config needs none

    return isinstance(found, type) and issubclass(found, PreTrainedModel) and found is not PreTrainedModel


def _has_inner(described: Mapping[str, Any]) -> bool:
    """Whether a part of a config names code: transformers builds parts without a word on trust."""
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
        with suppress(OSError, ValueError):  # transformers will say what is missing
            path = Path(str(cached_file(owner.removesuffix("--") or str(where), f"{module}.py")))
            found[f"{owner}{path.name}"] = file_sha256(path)
            for file in map(Path, dynamic_module_utils.get_relative_import_files(path)):
                found[f"{owner}{file.name}"] = file_sha256(file)
    return found


def _read(where: Path | str, file: str) -> dict[str, Any]:
    """A config of a folder or hub id; empty where it has none."""
    try:
        path = cached_file(str(where), file)
    except OSError:
        return {}
    return {} if path is None else read_json(Path(path))


def _culprit(error: BaseException) -> str | None:
    """The module of a checkpoint that an error came through."""
    trace, found = error.__traceback__, None
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        found, trace = name.rpartition(".")[2] if name.startswith(MODULES) else found, trace.tb_next
    return found


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@cache
def _say(line: str, modules: str = "") -> None:
    """Once, however often it is loaded with the same modules."""
    logging.getLogger("attnlens").warning(printable(line))
