"""What attention carries: the vectors that keys write into the residual stream, behind values and output projection."""

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
