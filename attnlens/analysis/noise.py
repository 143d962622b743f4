"""The random-weight-noise band (METRICS 6.3): the tuning's change of every weight, turned about at random."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.fft import dct

from attnlens.analysis.measure import MeasureOptions, measure
from attnlens.analysis.opening import opened
from attnlens.analysis.parts import Progress
from attnlens.analysis.prepare import Prepared
from attnlens.analysis.subjects import Subject
from attnlens.checkpoints.load import Checkpoint, load
from attnlens.checkpoints.shelf import Shelf
from attnlens.checkpoints.tensors import EMBEDDING, named
from attnlens.core.errors import UnsupportedModel

Array = NDArray[np.float64]


def noise_band(
    base: Checkpoint,
    tuned: Mapping[str, Checkpoint],
    prepared: Prepared,
    *,
    draws: int,
    options: MeasureOptions,
) -> xr.DataArray:
    """Focus (net share of attention, METRICS 3.4) of `draws` perturbed bases for each tuned model.

    Returns dims noised (names of `tuned`), draw, example, layer, head, salience. Each perturbed base is W + Δ̃ with Δ̃ of
    the singular values of the tuning's own Δ and random directions (`turned`), seeds 0 … draws − 1. What it shows is
    what a change of that size does to attention when it means nothing. That is little: it is drawn, and no condition of
    any answer. One forward pass over the texts each; one copy of the model in memory at a time.
    """
    found = []
    for at, (_, model) in enumerate(tuned.items()):
        for seed in range(draws):
            progress = _shifted(options.progress, at * draws + seed, len(tuned) * draws)
            each = MeasureOptions(options.batch_size, options.memory, None, progress)
            arrays = measure([Subject(perturbed(base, model, seed), True)], prepared, each).arrays
            found.append(arrays["focus"][0])
    values = np.stack(found).reshape(len(tuned), draws, *found[0].shape)
    dims = ("noised", "draw", "example", "layer", "head", "salience")
    return xr.DataArray(values, dims=dims, coords={"noised": list(tuned), "salience": list(prepared.salience)})


def perturbed(base: Checkpoint, tuned: Checkpoint, seed: int) -> Checkpoint:
    """A copy of the base whose backbone differs from it by as much as `tuned` does, in random directions.

    Raises UnsupportedModel for a base that shares its model with adapters and lies nowhere to be loaded again.
    """
    if base.adapter is None:
        model = copy.deepcopy(base.model)
    elif base.source is not None:
        model = load(base.source.path or base.source.given).model
    else:
        raise UnsupportedModel("the noise band changes weights of the base: give it as a folder, or merge the adapters")
    model.to(device=base.model.device, dtype=base.model.dtype)  # pyright: ignore[reportCallIssue]
    own = model.state_dict()
    names = named(Shelf.of(own)).names
    rng = np.random.default_rng(seed)
    with opened(base, tuned) as both:
        for matched in both.pairing.pairs:
            if matched.kind != "backbone" or matched.matrix not in names:
                continue
            change = both.tuned.read(matched.tuned).double() - both.base.read(matched.base).double()
            table = EMBEDDING.search(matched.matrix) is not None
            noise = turned(change.numpy(), rng, table=table)
            weight = own[names[matched.matrix]]
            weight.copy_(weight.double() + torch.from_numpy(noise).to(weight.device))
    return Checkpoint(model, base.tokenizer, f"noise {seed}", base.provenance)


def turned(change: Array, rng: np.random.Generator, *, table: bool = False) -> Array:
    """A change of the same size and shape in a random direction.

    A matrix (…, m, n) keeps its singular values: U diag(σ) Vᵀ becomes Q₁U diag(σ) (Q₂V)ᵀ with random orthogonal Q₁, Q₂
    (signs, cosine transform, permutation: O(mn log mn)). The entries of a vector, and the rows of an embedding table
    (`table`), change places. Zero stays zero, exactly. Hand example: the 1 × 1 matrix (2) becomes (2) or (−2).
    """
    if change.ndim < 2 or table:
        return rng.permutation(change)
    return np.swapaxes(_turned_rows(np.swapaxes(_turned_rows(change, rng), -1, -2), rng), -1, -2)


def _turned_rows(values: Array, rng: np.random.Generator) -> Array:
    """The last axis under one random orthogonal map."""
    width = values.shape[-1]
    signs = rng.choice([-1.0, 1.0], width)
    mixed = np.asarray(dct(values * signs, axis=-1, norm="ortho"))
    return mixed[..., rng.permutation(width)]


def _shifted(progress: Progress | None, before: int, rounds: int) -> Progress | None:
    """Progress of one of several passes, told as part of them all."""
    if progress is None:
        return None
    return lambda done, total: progress(before * total + done, rounds * total)
