"""Two checkpoints opened to be read tensor by tensor: folders, files, adapters, or models in memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Union

from attnlens.checkpoints.config import read_config
from attnlens.checkpoints.deltas import Adapted
from attnlens.checkpoints.heads import Geometry
from attnlens.checkpoints.identity import home_free
from attnlens.checkpoints.kinds import check_kind
from attnlens.checkpoints.remote_code import trusting
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.source import ENDINGS, Source, locate, settle
from attnlens.checkpoints.tensors import Pairing, Tensors, pair
from attnlens.core.errors import CheckpointError, OwnCode, UnsupportedModel

if TYPE_CHECKING:
    from attnlens.checkpoints.load import Checkpoint

Given = Union["Checkpoint", Source, str, Path]


class Opened(NamedTuple):
    """Two checkpoints whose tensors can be read, and which tensor is which.

    geometry: heads of the base; None where no config.json of a known architecture says.
    """

    base: Tensors
    tuned: Tensors
    pairing: Pairing
    names: tuple[str, str]
    geometry: Geometry | None


@contextmanager
def opened(base: Given | None, tuned: Given) -> Iterator[Opened]:
    """Open both checkpoints and pair their tensors; base None: the one that the adapter `tuned` names."""
    right = _side(tuned)
    left = _own_base(right) if base is None else _side(base)
    if isinstance(left, Source) and isinstance(right, Source):
        left, right = settle([left, right])
    with ExitStack() as stack:
        first, second = (_tensors(side, stack) for side in (left, right))
        geometry = _geometry(left) or _geometry(right)
        yield Opened(first, second, pair(first, second), (left.name, right.name), geometry)


def _side(given: Given) -> "Checkpoint | Source":
    """The files of a checkpoint; the checkpoint itself where there are none, or its model was changed since."""
    if isinstance(given, Source):
        return _fetched(given)
    if isinstance(given, str | Path):
        return _fetched(_located(given))
    if given.source is not None and given.source.files and given.is_as_loaded:
        return given.source
    return given


def _located(given: str | Path) -> Source:
    """Where the checkpoint lies; a file of weights needs no config.json to be compared."""
    path = Path(given).expanduser()
    if path.is_file() and path.suffix in ENDINGS and not (path.parent / "config.json").is_file():
        return Source(home_free(path), "file", path, (path,), path.parent, None)
    return locate(given)


def _fetched(source: Source) -> Source:
    """A source with its files here: loading a model from the hub leaves them in the cache."""
    if source.kind != "hub" or source.files:
        return source
    from attnlens.checkpoints.load import load  # a model's classes take seconds to import, and files need none

    try:
        with trusting(False):
            load(source.given)
    except OwnCode as error:
        raise CheckpointError(
            f"{source.given} is no architecture of transformers: give the folder it lies in"
        ) from error
    return locate(source.given)


def _own_base(tuned: "Checkpoint | Source") -> Source:
    if not isinstance(tuned, Source) or tuned.kind != "adapter":
        raise CheckpointError(f"{tuned.name} is no adapter, which would name its base: give BASE and TUNED")
    if tuned.base is None:
        raise CheckpointError(f"the base of {tuned.given} is not here: give BASE and the adapter")
    return _fetched(tuned.base)


def _tensors(side: "Checkpoint | Source", stack: ExitStack) -> Tensors:
    """The tensors of one side; an adapter's on its base."""
    if not isinstance(side, Source):
        state = side.model.state_dict()
        if any(".base_layer." in name for name in state):
            raise UnsupportedModel(f"{side.name} has an adapter inside it: save the adapter and give its folder")
        return Shelf.of(state)
    shelf = stack.enter_context(Shelf(side.files))
    if side.kind != "adapter":
        return shelf
    if side.base is None:
        raise CheckpointError(f"the base of {side.given} is not here: give BASE and the adapter")
    return Adapted(_tensors(_fetched(side.base), stack), shelf, check_kind(side))


def _geometry(side: "Checkpoint | Source") -> Geometry | None:
    config: Any = None
    if not isinstance(side, Source):
        config = side.model.config
    elif isinstance(side.config, str) or (side.config / "config.json").is_file():
        with trusting(False), suppress(OwnCode):  # what only code could tell is left out
            config = read_config(side.config)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None
    key_heads = 1 if getattr(config, "multi_query", False) else heads
    return Geometry(heads, getattr(config, "num_key_value_heads", None) or key_heads, config.model_type)
