"""A base with an adapter on it, tensor by tensor, without merging: low-rank changes stay factors."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnlens.checkpoints.kinds import ADDS, SAVED, WRAPPED, shares_base
from attnlens.checkpoints.tensors import Tensors, root_of
from attnlens.core.errors import CheckpointError, UnsupportedModel
from attnlens.core.spectra import LowRank

# What peft may write behind the name of a module, and what it is to us.
PARTS = re.compile(
    r"\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l)(?:\.weight)?$"
    r"|\.(?:modules_to_save\.|base_layer\.)?(?P<whole>weight|bias)$"
)
# What stands beside the weights of the base and changes none of them.
BESIDE = re.compile(r"\.bottleneck\.(?:down|up)\.(?:weight|bias)$|^prompt_embeddings$")
PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


class Adapted:
    """The tensors of a base with an adapter on it; `read` materialises one at a time, in float64 where it changed.

    base: the base's tensors. adapter: the adapter's own. settings: its adapter_config.json. beside: names of what the
    adapter adds without changing a weight of the base, which are not among `names`.
    Raises UnsupportedModel for anything but LoRA (also rank-stabilised and DoRA), IA3, bottlenecks, prompts and whole
    trained weights, and CheckpointError for an adapter whose weights find no place in the base.
    """

    def __init__(self, base: Tensors, adapter: Tensors, settings: Mapping[str, Any]):
        kind = settings.get("peft_type")
        if kind not in ("LORA", "IA3", *ADDS):
            raise UnsupportedModel(
                f"weight changes of {kind} adapters cannot be read from their files: merge the adapter into its base"
            )
        if not shares_base({name: value for name, value in settings.items() if name != "bias"}):
            raise UnsupportedModel("training this adapter began by changing its base: merge the adapter and save it")
        self._base, self._adapter, self._settings = base, adapter, settings
        self._parts: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        self.beside = tuple(name for name in adapter.names if BESIDE.search(name))
        for name in adapter.names:
            if name in self.beside:
                continue
            path, part = _split(name)
            if part in ("weight", "bias"):
                whole[f"{path}.{part}"] = name
            else:
                self._parts.setdefault(path, {})[part] = name
        places = _places(base, self._parts, whole, adds=bool(self.beside))
        self._modules = {f"{places(path)}.weight": path for path in self._parts}
        for path, parts in self._parts.items():
            if "ia3_l" in parts and adapter.shape(parts["ia3_l"])[-1] == 1:
                self._modules[f"{places(path)}.bias"] = path  # the module's output is scaled, its bias with it
        self._whole = {places(path): name for path, name in whole.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The base's names, then those of weights that the adapter adds, such as a head."""
        return tuple(dict.fromkeys([*self._base.names, *self._whole]))

    @property
    def tied(self) -> list[tuple[str, ...]]:
        """Tied tensors of the base of which the adapter changes none."""
        return [group for group in self._base.tied if not any(name in self._whole for name in group)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._adapter.shape(self._whole[name]) if name in self._whole else self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of what is stored: the base's, unless the adapter holds the whole weight."""
        return self._adapter.dtype(self._whole[name]) if name in self._whole else self._base.dtype(name)

    def read(self, name: str) -> Tensor:
        """The tensor as the adapted model uses it."""
        base = self._adapter.read(self._whole[name]) if name in self._whole else self._base.read(name)
        path = self._modules.get(name)
        if path is None:
            return base
        parts = {part: self._adapter.read(stored).double() for part, stored in self._parts[path].items()}
        if "ia3_l" in parts:
            return _scaled(base.double(), parts["ia3_l"], self._flag("fan_in_fan_out"))
        change = self._factors(name)
        assert change is not None
        adapted = base.double() + change.dense()
        if "lora_magnitude_vector" in parts:
            return _with_magnitude(adapted, parts["lora_magnitude_vector"], self._transposed(name, path))
        return adapted

    def untouched(self, name: str) -> bool:
        """Whether the adapter leaves this tensor as it is in the base."""
        return name not in self._whole and name not in self._modules

    def low_rank(self, name: str) -> LowRank | None:
        """The change of this tensor as factors; None where it is no product of two."""
        path = self._modules.get(name)
        if name in self._whole or path is None or "lora_magnitude_vector" in self._parts[path]:
            return None
        return self._factors(name)

    def _factors(self, name: str) -> LowRank | None:
        path = self._modules[name]
        for down, up in PAIRS:
            stored = self._parts[path]
            if (down in stored) != (up in stored):
                raise CheckpointError(f"the adapter holds only one of {down} and {up} for {path}: it is damaged")
            if down in stored:
                inner, outer = self._adapter.read(stored[down]), self._adapter.read(stored[up])
                if self._transposed(name, path) or down == "lora_embedding_A":
                    inner, outer = outer.T, inner.T
                change = LowRank(outer, inner, self._scale(path, min(inner.shape[0], outer.shape[1])))
                if change.shape != self._base.shape(name):
                    raise CheckpointError(
                        f"the adapter changes {path} of shape {change.shape}, but in the base it is "
                        f"{self._base.shape(name)}: it was made for another model"
                    )
                return change
        return None

    def _transposed(self, name: str, path: str) -> bool:
        """Whether the base stores the module (in, out), as GPT-2 does: by its shape, where square by the settings."""
        stored = self._parts[path]
        if "lora_A" not in stored or "lora_B" not in stored:
            return False
        change = self._adapter.shape(stored["lora_B"])[0], self._adapter.shape(stored["lora_A"])[-1]
        return self._base.shape(name) == change[::-1] and (change[0] != change[1] or self._flag("fan_in_fan_out"))

    def _scale(self, path: str, rank: int) -> float:
        """α/r, rank-stabilised α/√r; single modules may have an α of their own."""
        try:
            alpha = float(self._settings.get("lora_alpha", 8))
            for pattern, own in (self._settings.get("alpha_pattern") or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", path):
                    alpha = float(own)
                    break
            return alpha / math.sqrt(rank) if self._flag("use_rslora") else alpha / rank
        except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
            raise CheckpointError(f"the adapter's settings give no scale for {path}: {error}") from error

    def _flag(self, name: str) -> bool:
        return bool(self._settings.get(name))


def _split(name: str) -> tuple[str, str]:
    """Path of the module and what is stored for it; UnsupportedModel for what attnlens does not know."""
    found = PARTS.search(name)
    path = name[: found.start()].removeprefix(SAVED).removeprefix(WRAPPED) if found else ""
    if found is None or "lora_" in path or "ia3_" in path:
        raise UnsupportedModel(f"the adapter holds {name}, a kind of change whose size cannot be read from its files")
    return path, found["part"] or found["whole"]


@dataclass(frozen=True)
class _Places:
    """Turns paths in the adapter into names in the base: leading segments come off, others go in front."""

    cut: int
    front: str
    known: frozenset[str]

    def __call__(self, path: str) -> str:
        place = self.front + ".".join(path.split(".")[self.cut :])
        inside = place in self.known or f"{place}.weight" in self.known
        return place if inside else path


def _places(base: Tensors, parts: Mapping[str, Any], whole: Mapping[str, str], *, adds: bool) -> _Places:
    """The one shift of names under which every changed module is found in the base.

    adds: the adapter is more than these; whole weights that the base has not are then a head's.
    """
    known = frozenset(base.names)
    root = root_of(base.names)
    best: list[str] = []
    for front in ("", f"{root}."):
        for cut in range(4):
            places = _Places(cut, front, known)
            lost = [path for path in parts if f"{places(path)}.weight" not in known]
            if not lost and (parts or any(places(path) in known for path in whole)):
                return places
            best = lost if not best or len(lost) < len(best) else best
    if adds and not parts:
        return _Places(0, "", known)
    first = (best or list(whole) or ["nothing"])[0]
    raise CheckpointError(f"the adapter changes {first}, which its base does not have: it was made for another model")


def _scaled(weight: Tensor, factor: Tensor, transposed: bool) -> Tensor:
    """IA3: outputs (out, 1) or inputs (1, in) of a module multiplied by learned numbers; a bias by those of outputs."""
    factor = factor.reshape(-1) if weight.ndim == 1 else factor.T if transposed else factor
    _check_fit(weight, factor, "ia3_l")
    return weight * factor


def _with_magnitude(adapted: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
    """DoRA: rows of W + Δ brought to the learned lengths."""
    length = torch.linalg.vector_norm(adapted, dim=0 if transposed else 1, keepdim=True)
    magnitude = magnitude.reshape(1, -1) if transposed else magnitude.reshape(-1, 1)
    _check_fit(length, magnitude, "lora_magnitude_vector")
    return adapted * magnitude / length


def _check_fit(weight: Tensor, factor: Tensor, part: str) -> None:
    """CheckpointError unless each axis of `factor` is 1 or that of `weight`, so that nothing is silently widened."""
    sizes = zip(factor.shape, weight.shape, strict=False)
    if factor.ndim != weight.ndim or any(mine not in (1, theirs) for mine, theirs in sizes):
        raise CheckpointError(
            f"{part} of the adapter has shape {tuple(factor.shape)}, which does not fit {tuple(weight.shape)} in the "
            "base: it was made for another model"
        )
