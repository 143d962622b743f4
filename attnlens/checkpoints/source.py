"""Where a checkpoint lies and of which kind it is: folder, hub id, adapter or single file; nothing is loaded here."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from attnlens.checkpoints.identity import files_sha256, home_free
from attnlens.checkpoints.seal import check_seal
from attnlens.core.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
# Bottleneck adapters are none of peft's: under these names it does not take them for its own.
BOTTLENECK_CONFIG, BOTTLENECK_WEIGHTS = "bottleneck_config.json", "bottleneck.safetensors"
# Names of weights in the order transformers and peft look for them; each may instead be an index of shards.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BOTTLENECK = "BOTTLENECK"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
READ = (".json", ".jinja", ".model", ".txt", ".py")  # what else is read of a checkpoint than weights
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
NEEDED = f"needed a Hugging Face checkpoint directory, an adapter directory, a {'/'.join(ENDINGS)} file or a hub id"


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been found.

    given: as the user wrote it, home as ~. kind: "directory", "hub", "adapter" or "file". path: its folder or file;
    None for a hub id that is not in the local cache. files: weight files, all shards of an index, of an adapter its
    own. config, tokenizer: folder or hub id; an adapter's are its base's where it has none; tokenizer None: has none.
    base: what an adapter stands on; None where that is not here and no hub id.
    """

    given: str
    kind: str
    path: Path | None
    files: tuple[Path, ...]
    config: Path | str
    tokenizer: Path | str | None
    base: "Source | None" = None

    @property
    def described(self) -> tuple[Path | str, ...]:
        """Folders and hub ids whose configs are read, each once: the model's, the tokenizer's, an adapter's own."""
        own = self.path if self.kind == "adapter" else None
        return tuple(dict.fromkeys(place for place in (self.config, self.tokenizer, own) if place is not None))

    @property
    def name(self) -> str:
        """What reports call it: the folder's name, the file's without its ending, or the hub id."""
        if self.kind == "hub" or self.path is None:
            return self.given
        path = self.path.resolve()
        return path.stem if self.kind == "file" else path.name


def names_of(sources: Sequence[Source]) -> list[str]:
    """What reports call them; those of one name are told apart by the folders they lie in, where these differ."""
    names = [source.name for source in sources]
    longer = [
        f"{source.path.resolve().parent.name}/{name}" if source.path is not None else name
        for source, name in zip(sources, names, strict=True)
    ]
    return [
        long if names.count(name) > 1 and longer.count(long) == 1 else name
        for name, long in zip(names, longer, strict=True)
    ]


def locate(source: str | Path, *, config: str | Path | None = None, tokenizer: str | Path | None = None) -> Source:
    """Find a checkpoint; CheckpointError for what is none, lacks a part or was damaged since attnlens wrote it.

    config: folder (or config.json) or hub id, for a single file, or a folder without config.json. tokenizer: for a
    single file, or where there are no tokenizer files. An adapter's base is looked for here before the hub.
    """
    found = _found(source, *(None if part is None else _part(part) for part in (config, tokenizer)))
    for file in found.files:
        check_seal(file)
    for folder in {part for part in (found.path, found.config, found.tokenizer) if isinstance(part, Path)}:
        if folder.is_dir():
            check_seal(folder, READ)
    return found


def _found(source: str | Path, config: Path | str | None, tokenizer: Path | str | None) -> Source:
    path = Path(source).expanduser()
    if path.is_dir():
        if any((path / name).is_file() for name in (ADAPTER_CONFIG, BOTTLENECK_CONFIG)):
            return _adapter(path, tokenizer)
        return _directory(path, config, tokenizer)
    if path.is_file():
        if path.name in ADAPTER_WEIGHTS and (path.parent / ADAPTER_CONFIG).is_file():
            return _adapter(path.parent, tokenizer)
        return _file(path, config, tokenizer)
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise CheckpointError(f"{home_free(path)} does not exist: {NEEDED}")
    return _hub(source, tokenizer)


def settle(sources: Sequence[Source]) -> list[Source]:
    """Base first: adapters stand on that base as given, or on what it stands on where it is an adapter too.

    CheckpointError for an adapter whose own base is at hand and has other weights.
    """
    if not sources:
        return []
    first = sources[0]
    base = first.base if first.kind == "adapter" else first
    return [first, *(source if base is None else _standing_on(base, source, first) for source in sources[1:])]


def _standing_on(base: Source, source: Source, first: Source) -> Source:
    if source.kind != "adapter":
        return source
    assert source.path is not None
    if source.base is not None and not _same_weights(source.base, base):
        shown = f"{first.given} stands on {base.given}" if first is not base else f"{first.given} has other weights"
        raise CheckpointError(
            f"{source.given} is an adapter of {source.base.given}, but {shown}: give the base it was trained on, or "
            "the adapter alone"
        )
    tokenizer = source.path if _has_tokenizer(source.path) else base.tokenizer or source.tokenizer
    return replace(source, base=base, config=base.config, tokenizer=tokenizer)


def _same_weights(recorded: Source, base: Source) -> bool:
    """Whether two sources hold the same bytes; a hub id that is not in the cache is taken at the user's word."""
    if not recorded.files or not base.files:
        return recorded.path is None or base.path is None
    if [path.resolve() for path in recorded.files] == [path.resolve() for path in base.files]:
        return True
    sizes = [[path.stat().st_size for path in each.files] for each in (recorded, base)]
    return sizes[0] == sizes[1] and files_sha256(recorded.files) == files_sha256(base.files)


def adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of a PEFT adapter, as written; of bottleneck adapters those, with a `peft_type` of our own."""
    if (folder / BOTTLENECK_CONFIG).is_file():
        return read_json(folder / BOTTLENECK_CONFIG) | {"peft_type": BOTTLENECK}
    value = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(value.get("peft_type"), str):
        raise CheckpointError(f"{home_free(folder / ADAPTER_CONFIG)} names no peft_type: needed a PEFT adapter")
    return value


def check_hub(name: str, file: str = "config.json") -> None:
    """CheckpointError for a hub id that is neither in the local cache nor at the hub.

    transformers would ask six times, for half a minute, where a mistyped folder or a missing network is the cause.
    """
    try:
        if not isinstance(try_to_load_from_cache(name, file), str):
            HfApi().model_info(name, timeout=10)
    except Exception as error:  # its errors have no common root below Exception
        raise CheckpointError(
            f"{name} is no folder here, and no such model could be had from the hub: check the path or the id, or set "
            "HF_TOKEN where the model is private"
        ) from error


def _directory(folder: Path, config: Path | str | None, tokenizer: Path | str | None) -> Source:
    if (folder / "config.json").is_file():
        config = folder
        read_json(folder / "config.json")  # transformers would say neither where nor what to do
    elif config is None:
        raise CheckpointError(
            f"{home_free(folder)} holds no config.json and no {ADAPTER_CONFIG}: needed a Hugging Face checkpoint or "
            "adapter directory, or --config"
        )
    files = _weights(folder, WEIGHTS)
    if not files:
        others = [path.name for path in sorted(folder.iterdir()) if path.suffix in ENDINGS[:-1]]
        hint = f"; give the file itself, {home_free(folder / others[0])}" if others else ""
        raise CheckpointError(
            f"the weights of {home_free(folder)} cannot be loaded: it holds neither {' nor '.join(WEIGHTS)}{hint}"
        )
    tokenizer = folder if _has_tokenizer(folder) else tokenizer or _tokenizer_of(config)
    return Source(home_free(folder), "directory", folder, files, config, tokenizer)


def _file(path: Path, config: Path | str | None, tokenizer: Path | str | None) -> Source:
    shown = home_free(path)
    if path.suffix not in ENDINGS:
        raise CheckpointError(f"{shown} is a file that ends in none of {', '.join(ENDINGS)}: {NEEDED}")
    if config is None:
        if not (path.parent / "config.json").is_file():
            raise CheckpointError(
                f"{shown} has no config.json beside it: put one there with its tokenizer, or add "
                "--config ID|DIR --tokenizer ID|DIR"
            )
        config = path.parent
    if tokenizer is None:
        tokenizer = path.parent if _has_tokenizer(path.parent) else _tokenizer_of(config)
    return Source(shown, "file", path, (path,), config, tokenizer)


def _adapter(folder: Path, tokenizer: Path | str | None) -> Source:
    names = (BOTTLENECK_WEIGHTS,) if (folder / BOTTLENECK_CONFIG).is_file() else ADAPTER_WEIGHTS
    files = _weights(folder, names)
    if not files:
        raise CheckpointError(f"{home_free(folder)} is an adapter without {' or '.join(names)}")
    recorded = adapter_config(folder).get("base_model_name_or_path")
    base = _adapter_base(folder, recorded) if isinstance(recorded, str) and recorded else None
    if _has_tokenizer(folder):
        tokenizer = folder
    elif base is not None:
        tokenizer = base.tokenizer or tokenizer
    config = folder if base is None else base.config
    return Source(home_free(folder), "adapter", folder, files, config, tokenizer, base)


def _adapter_base(folder: Path, recorded: str) -> Source | None:
    """As written; relative to the adapter; relative to here is what is written; by its last part beside it; the hub."""
    last = re.split(r"[/\\]", recorded.rstrip("/\\"))[-1]
    written = Path(recorded).expanduser()
    for path in (written, folder / written, folder.resolve().parent / last, Path(last)):
        if path.is_dir() and path.resolve() != folder.resolve() and (path / "config.json").is_file():
            return locate(path)
    return _hub(recorded, None) if HUB_ID.fullmatch(recorded) else None


def _hub(name: str, tokenizer: Path | str | None) -> Source:
    """A hub id; its files as far as the cache has them. An adapter from the hub is one only once it is in the cache."""
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        folder = Path(cached).parent
        return Source(name, "hub", folder, _weights(folder, WEIGHTS), name, name)
    adapter = try_to_load_from_cache(name, ADAPTER_CONFIG)
    if isinstance(adapter, str):
        return _adapter(Path(adapter).parent, tokenizer)
    return Source(name, "hub", None, (), name, name)


def _weights(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The weight files that loading would read: the first name there is, whole or as an index of shards."""
    for name in names:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return tuple(_shards(index))
    return ()


def _shards(index: Path) -> Iterator[Path]:
    """The files an index names, each once; they must lie beside it."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        raise CheckpointError(f"{home_free(index)} has no weight_map from weights to files: the checkpoint is damaged")
    for shard in sorted(set(named.values())):
        if Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(f"{home_free(index)} names {shard!r}, which lies outside its folder: refused")
        if not (index.parent / shard).is_file():
            raise CheckpointError(f"{home_free(index)} names {shard}, which is not there: download or copy it again")
        yield index.parent / shard


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{home_free(path)} cannot be read ({error.strerror}): check its rights") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise CheckpointError(
            f"{home_free(path)} cannot be used: no JSON from line {line} on; copy or download it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{home_free(path)} is not a JSON object")
    return value


def _part(where: str | Path) -> Path | str:
    """Folder or hub id of a config or tokenizer that the user names."""
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    if isinstance(where, Path) or not HUB_ID.fullmatch(where):
        raise CheckpointError(f"{home_free(path)} does not exist: needed a folder or a hub id")
    return where


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _tokenizer_of(config: Path | str) -> Path | str | None:
    """A config's own tokenizer: a hub id has one, a folder where it holds the files."""
    return config if isinstance(config, str) or _has_tokenizer(config) else None
