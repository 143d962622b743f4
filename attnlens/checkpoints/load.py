"""Load a checkpoint: no code of it runs unasked, nothing is silently random, and its attention is proved."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from attnlens.checkpoints.adapter import (
    Adapter,
    architecture_for,
    attach,
    bare_class,
    is_head,
)
from attnlens.checkpoints.card import card
from attnlens.checkpoints.config import first_line, read_config
from attnlens.checkpoints.identity import files_sha256, home_free, read_record, weights_sha256
from attnlens.checkpoints.kinds import check_kind, shares_base
from attnlens.checkpoints.proof import prove
from attnlens.checkpoints.remote_code import check_code, code_facts, faults, saved_model, trusted
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.single import read_single, stored_dtype
from attnlens.checkpoints.source import BOTTLENECK, TOKENIZER_FILES, Source, locate, names_of, settle
from attnlens.core.errors import AttnlensError, CheckpointError, UnknownName

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SPREAD = "auto"  # the device of a model that lies on all GPUs


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer, its name, and where it came from.

    provenance: path (home written as ~), sha256 of the weights, architecture, model type, dtype, remote_code (code of
    its own, or None), parameters, proof; of an adapter also `adapter`, where attnlens trained it `training`. Base and
    adapters that `load_all` put into one `model` share it: run it inside `active()`. checksum: of the model's
    parameters when it had been loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    provenance: dict[str, Any]
    adapter: Adapter | None = None
    source: Source | None = None
    checksum: int | None = None

    def active(self) -> AbstractContextManager[None]:
        """While it is open the model computes as this checkpoint: with its adapter alone, or as the base."""
        return nullcontext() if self.adapter is None else self.adapter.active(self.model)

    @property
    def virtual(self) -> int:
        """How many virtual tokens it puts before every text."""
        return 0 if self.adapter is None else int(self.adapter.facts.get("virtual_tokens", 0))

    @property
    def is_as_loaded(self) -> bool:
        """Whether the model's parameters are, bit for bit, those it was loaded with; then `source` holds them too."""
        return self.checksum is not None and self.checksum == checksum(self.model)

    @property
    def backbone(self) -> PreTrainedModel:
        """The model without its task head; of an encoder–decoder the encoder."""
        if self.model.config.is_encoder_decoder:
            return self.model.get_encoder()  # pyright: ignore[reportReturnType]
        return self.model.base_model  # pyright: ignore[reportReturnType]

    def __str__(self) -> str:
        """One line: name, architecture, size, dtype."""
        facts = self.provenance
        return f"{self.name}: {facts['architecture']}, {facts['parameters']:,} parameters, {facts['dtype']}"

    def _repr_html_(self) -> str:
        """What it is, as a table for a notebook."""
        facts, adapter = self.provenance, self.provenance.get("adapter") or {}
        settings = [f"{name} {adapter[name]}" for name in ("r", "alpha", "virtual_tokens") if name in adapter]
        shown = {
            "architecture": type(self.model).__name__,
            "attention": facts.get("proof"),
            "parameters": f"{facts['parameters']:,}" if "parameters" in facts else None,
            "number format": facts.get("dtype"),
            "adapter": ", ".join([adapter["type"], *settings]) if "type" in adapter else None,
            "on the base": adapter.get("base"),
            "fine-tuned by": (facts.get("training") or {}).get("method"),
            "from": facts.get("path"),
        }
        return card(self.name, shown)


def load(
    source: str | Path,
    *,
    name: str | None = None,
    config: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
) -> Checkpoint:
    """Load a checkpoint of any kind, in evaluation mode, and prove its attention on a small batch.

    source: Hugging Face or adapter directory, hub id, or a single file of weights. name: what reports call it; default
    the folder's or file's name or the hub id. config: folder or hub id with the config.json of a single file; default
    beside it. tokenizer: an object, folder or hub id, used where the checkpoint has no tokenizer files of its own.
    device: "cpu", "cuda", "cuda:1", "mps"; "auto" spreads the layers over all GPUs (accelerate's device_map), for a
    model that one cannot hold. dtype: "float32", "bfloat16" or "float16" to load in; default as stored. Raises
    CheckpointError for what is missing or does not fit, UnsupportedModel where attention cannot be measured exactly. No
    code of the checkpoint runs outside of `trusting()` of remote_code.py.
    """
    given = tokenizer if isinstance(tokenizer, str | Path) else None
    found = locate(source, config=config, tokenizer=given)
    loaded = _Loader(device, dtype).load(found, name, None if given is not None else tokenizer)  # pyright: ignore[reportArgumentType]
    return replace(loaded, checksum=checksum(loaded.model))


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without its weights; CheckpointError where it has none."""
    with quiet():
        return _tokenizer(locate(source), None)


def load_all(
    sources: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
) -> list[Checkpoint]:
    """Load a base, which comes first, and what was tuned from it.

    Adapters of that base and the base itself are one loaded model: run it inside `active()`. A tuned checkpoint
    without tokenizer takes the base's. Raises what `load` raises, and CheckpointError for an adapter of another base.
    """
    found = settle([locate(source, config=config, tokenizer=tokenizer) for source in sources])
    loader = _Loader(device, dtype)
    loader.adapters = [source for source in found if source.kind == "adapter" and shares_base(check_kind(source))]
    loaded: list[Checkpoint] = []
    for source, name in zip(found, names or names_of(found), strict=True):
        loaded.append(loader.load(source, name, loaded[0].tokenizer if loaded else None))
    # Only now are all adapters in the models they share.
    checksums = {model: checksum(model) for model in {checkpoint.model for checkpoint in loaded}}
    return [replace(checkpoint, checksum=checksums[checkpoint.model]) for checkpoint in loaded]


def checksum(model: nn.Module) -> int:
    """CRC-32 of all parameters with their names: a changed bit or another order of numbers changes it.

    `torch.hash_tensor` would not do: it is blind to order, and to signs that change in pairs.
    """
    found = 0
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found = zlib.crc32(numbers.data, zlib.crc32(name.encode(), found))
    return found


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens the model reads: what its positions and its tokenizer allow."""
    limits = [int(tokenizer.model_max_length)]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        # RoBERTa counts positions from the padding index on, so that many rows are never reached.
        tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
        padding = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
        limits.append(positions - max((index + 1 for index in padding if index is not None), default=0))
    return min(limits)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' notices and progress bars: what matters in them is checked, and raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class _Loader:
    """Loads checkpoints one after the other; those that stand on one base share its model.

    adapters: what is to come and shares its base's model, so that the base is loaded in the class they need.
    """

    def __init__(self, device: str | torch.device, dtype: str | None):
        if dtype is not None and dtype not in DTYPES:
            raise UnknownName.among("dtype", dtype, DTYPES)
        check_device(device)
        self.device, self.dtype = device, None if dtype is None else DTYPES[dtype]
        self.adapters: list[Source] = []
        self.hosts: dict[tuple, PreTrainedModel] = {}
        self.sizes: dict[PreTrainedModel, int] = {}

    def load(self, source: Source, name: str | None, tokenizer: PreTrainedTokenizerBase | None) -> Checkpoint:
        """One checkpoint; the tokenizer is used where it has none."""
        adapter = None
        if source.kind == "adapter":
            model, adapter = self._adapted(source)
        elif guests := [guest for guest in self.adapters if guest.base == source]:
            model, adapter = self._host(source, guests[0]), Adapter(None, {})
        else:
            model = self._plain(source, *_described(source))
        facts = _facts(source, model, adapter)
        facts["parameters"] = self.sizes[model] + (facts.get("adapter") or {}).get("parameters", 0)
        loaded = Checkpoint(model, _tokenizer(source, tokenizer), name or source.name, facts, adapter, source)
        with loaded.active():
            facts["proof"] = prove(model).summary
        return loaded

    def _adapted(self, source: Source) -> tuple[PreTrainedModel, Adapter]:
        settings = check_kind(source)
        if source.base is None:
            named = settings.get("base_model_name_or_path")
            raise CheckpointError(
                f"the base {home_free(named) if named else '(none named)'} of the adapter {source.given} is neither "
                "here nor a hub id: put it there, or give both, the base first"
            )
        model = self._host(source.base, source)
        before = _size(model)
        adapter = attach(model, source)
        _check_finite(model, source)
        return model, replace(adapter, facts=adapter.facts | {"parameters": _size(model) - before})

    def _host(self, base: Source, adapter: Source) -> PreTrainedModel:
        """The model of `base` in the class that `adapter` was trained in; the same for all adapters of that class."""
        settings = check_kind(adapter)
        if settings["peft_type"] == BOTTLENECK:
            assert adapter.path is not None
            architecture, config = _described(replace(adapter, config=adapter.path))
        else:
            stored, config = _described(base)
            architecture = architecture_for(adapter, settings, stored, config)
        if not shares_base(settings):
            return self._plain(base, architecture, config)
        # Bottlenecks look for projections, which peft wraps: they keep apart.
        key = (base, architecture, config.num_labels, settings["peft_type"] == BOTTLENECK)
        if key not in self.hosts:
            self.hosts[key] = self._plain(base, architecture, config)
        return self.hosts[key]

    def _plain(self, source: Source, architecture: Any, config: Any) -> PreTrainedModel:
        spread = self.device == SPREAD
        model = _model(source, architecture, config, {"dtype": self.dtype} | ({"device_map": SPREAD} if spread else {}))
        if not spread:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        elif any(parameter.is_meta for parameter in model.parameters()):
            raise CheckpointError(f"{source.given} does not fit the GPUs here: use a narrower --dtype, or the cpu")
        model.eval()
        _check_finite(model, source)
        self.sizes[model] = _size(model)
        return model


def _described(source: Source) -> tuple[Any, Any]:
    """The class a checkpoint was saved in, and its configuration."""
    config = read_config(source.config)
    if (own := saved_model(config)) is not None:
        return own, config
    names = config.architectures or []
    architecture = getattr(transformers, names[0], None) if names else None
    if not (isinstance(architecture, type) and issubclass(architecture, PreTrainedModel)):
        architecture = bare_class(config)
    return architecture, config


def _model(source: Source, architecture: Any, config: Any, options: dict[str, Any]) -> PreTrainedModel:
    """The model in this architecture, all backbone weights present and of the shapes that its configuration gives.

    options: of from_pretrained; a dtype of None is the stored one.
    """
    Shelf(source.files)  # a file whose header lies is refused before anything reads it
    dtype: Any = options["dtype"] or "auto"
    where: Any = source.given if source.kind == "hub" else source.path
    try:
        if source.kind == "file":
            state, where = read_single(source, architecture, config), None
            dtype, options = options["dtype"] or stored_dtype(state), options | {"state_dict": state}
        with quiet():
            loaded: Any = architecture.from_pretrained(
                where,
                config=config,
                trust_remote_code=False,  # the class is known: what is left is code that generates text
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # of a head; the backbone's are checked below
                **options | {"dtype": dtype},
            )
    except AttnlensError:
        raise
    except faults() as error:
        raise CheckpointError(f"the weights of {source.given} cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    mismatched = sorted(entry for entry in report["mismatched_keys"] if not is_head(entry[0], model))
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise CheckpointError(
            f"the weights of {source.given} cannot be loaded: {name} is {tuple(stored)} there and {tuple(wanted)} by "
            "its config.json, which belongs to another model"
        )
    missing = sorted(name for name in report["missing_keys"] if not is_head(name, model) and "pooler" not in name)
    if missing:
        raise CheckpointError(
            f"{source.given} lacks {len(missing)} backbone weights, the first is {missing[0]}; they would be random"
        )
    return model


def _facts(source: Source, model: PreTrainedModel, adapter: Adapter | None) -> dict[str, Any]:
    """Where a checkpoint came from; no home directory in it."""
    config = model.config
    facts = {
        "path": source.given,
        "kind": source.kind,
        "sha256": _sha256(source),
        "revision": getattr(config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "model_type": config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "remote_code": code_facts(*source.described),
    }
    if adapter is not None and source.base is not None:
        facts["adapter"] = adapter.facts | {"base": source.base.given, "base_sha256": _sha256(source.base)}
    training = read_record(source.path) if source.path is not None and source.path.is_dir() else None
    return facts if training is None else facts | {"training": training}


def _sha256(source: Source) -> str | None:
    """Checksum of a checkpoint's own weights; a hub id's is its revision."""
    if source.kind == "hub" or source.path is None:
        return None
    return weights_sha256(source.path) if source.kind == "directory" else files_sha256(source.files)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _check_finite(model: nn.Module, source: Source) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(
                f"{source.given} holds NaN or infinite numbers, the first in {name}: the training that wrote it "
                "diverged, or the file is damaged"
            )


def check_device(device: str | torch.device) -> None:
    """Raise CheckpointError, with the devices that there are, for one that cannot be used here."""
    if device == SPREAD:
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # what torch raises for an absent and for an unknown device
        present = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        present += ["mps"] if torch.backends.mps.is_available() else []
        raise CheckpointError(f"device {device} cannot be used here: this machine has {', '.join(present)}") from error


def _tokenizer(source: Source, fallback: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if source.tokenizer is None:
        if fallback is None:
            raise CheckpointError(
                f"{source.given} has no tokenizer files ({', '.join(TOKENIZER_FILES)}): add --tokenizer ID|DIR"
            )
        return fallback
    check_code(source.tokenizer, tokenizer=True)
    try:
        return AutoTokenizer.from_pretrained(source.tokenizer, trust_remote_code=trusted())
    except faults() as error:
        raise CheckpointError(f"the tokenizer of {source.given} cannot be loaded: {first_line(error)}") from error
