"""What attention carries: the vectors that keys write into the residual stream, and what layers pass on."""

import torch
from torch import Tensor

from attnlens.core.errors import ShapeError


def value_norms(value: Tensor, output: Tensor) -> Tensor:
    """‖f(x_j)‖ = ‖W_O v_j‖ of each query head (Kobayashi et al. 2020), (B, H, K), in float32 or better.

    value (B, H_kv, K, D_v), with the bias of the values; output (H, D_v, M): each head's slice of the projection, as a
    map from values to the residual stream. The bias of the projection belongs to no key and is left out. With W_O = QR
    the norm is ‖R v‖: D_v numbers a key instead of M, and no digits lost in a Gram matrix.
    Hand example: v = [1, 2], W_O from rows [1, 0, 0] and [0, 2, 0] → ‖[1, 4, 0]‖ = √17.
    """
    (texts, key_heads, keys, width), (heads, inner, _) = value.shape, output.shape
    if width != inner or heads % key_heads:
        raise ShapeError(
            f"output (H, D_v, M) must fit value (B, H_kv, K, D_v); got {tuple(output.shape)} and {tuple(value.shape)}"
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    factor = torch.linalg.qr(output.to(dtype).mT, mode="r").R  # (H, min(M, D_v), D_v)
    # All query heads that share a key head at once: (H_kv, rep·r, D_v).
    shared = factor.reshape(key_heads, heads // key_heads * factor.shape[1], width)
    written = value.to(dtype) @ shared.mT  # (B, H_kv, K, rep·r)
    lengths = torch.linalg.vector_norm(written.unflatten(-1, (heads // key_heads, -1)), dim=-1)
    return lengths.transpose(2, 3).reshape(texts, heads, keys)


def summed_lengths(weights: Tensor, value: Tensor, output: Tensor) -> Tensor:
    """‖Σ_h α^h_ij f^h(x_j)‖ of a layer (Kobayashi et al. 2020, eq. 3, over its heads), (B, Q, K).

    weights (B, H, Q, K), of some query heads; value (B, H_kv, K, D_v); output (H, D_v, M), as of `value_norms`, of the
    same heads. By the Gram matrix of the heads' vectors of each key, H numbers a pair instead of M: in float64, which
    leaves half its digits where the vectors cancel. Hand example: two heads of one key, vectors [3, 0] and [0, 4],
    weights 1 and 1 → 5.
    """
    heads = weights.shape[1]
    shared = value.double().repeat_interleave(heads // value.shape[1], 1)  # (B, H, K, D_v)
    vectors = (shared @ output.double()).transpose(1, 2)  # (B, K, H, M)
    gram = vectors @ vectors.mT
    alphas = weights.double().permute(0, 3, 2, 1)  # (B, K, Q, H)
    squares = ((alphas @ gram) * alphas).sum(-1)
    return squares.clamp(min=0).sqrt().mT.to(weights.dtype)


def rollout_step(rolled: Tensor | None, weights: Tensor) -> Tensor:
    """R_l = ½(mean_h A_l + I) R_{l−1} (Abnar & Zuidema 2020), (B, T, T): what each row has of each token after layer l.

    weights (B, H, T, T): softmax rows, NaN where a row is padding: it passes itself on. rolled: R_{l−1}, None before
    the first layer. Hand example: one layer, one head, rows [1, 0] and [½, ½] → [1, 0] and [¼, ¾].
    """
    if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
        raise ShapeError(f"rollout needs attention of a text on itself, (B, H, T, T); got {tuple(weights.shape)}")
    mean = weights.mean(1)
    own = torch.eye(weights.shape[2], dtype=weights.dtype, device=weights.device)
    step = torch.where(mean.isnan(), own, (mean + own) / 2)
    return step if rolled is None else step @ rolled
