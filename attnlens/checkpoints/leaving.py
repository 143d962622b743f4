"""How the statistics of one attention come onto the tape: as rows, or as their means."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnlens.checkpoints.dense import MAP
from attnlens.checkpoints.tape import Call, Site
from attnlens.core.errors import ShapeError
from attnlens.core.rows import STATISTICS

if TYPE_CHECKING:
    from attnlens.checkpoints.session import Session

SLOT = "_attnlens_sessions"  # of a module: the sessions that measure it


def leave(session: "Session", site: Site, results: dict[str, Tensor]) -> None:
    """Put the statistics of a site onto the tape of the open call."""
    assert session.call is not None
    if "distance" in results and site.kind == "cross":
        results["distance"].fill_(torch.nan)  # positions in two texts
    session.call.sites.append(site)
    if session.fold is not None:
        session.fold(site, results)
        return
    for name, result in results.items():
        _put(session, session.call, name, result)


def check_heads(chosen: list[int], heads: int) -> None:
    """Raise ShapeError where a chosen head is none of a layer's."""
    if any(not 0 <= head < heads for head in chosen):
        raise ShapeError(f"heads must lie in 0 … {heads - 1}; got {chosen}")


def _put(session: "Session", call: Call, name: str, result: Tensor) -> None:
    """One statistic of one site onto the tape: its rows, or their means."""
    rows, some = session.rows, session.columns.get(name)
    if name == "share" and some is None:
        result = _together(result, session.together)
    if rows is not None and name != MAP and not (name in STATISTICS and STATISTICS[name].axes == "key"):
        if rows.ndim == 3 and some is not None:
            rows = rows[..., list(some)]
        result, count = _row_mean(result, rows.to(result))
        call.counts.setdefault(name, []).append(count)
    call.values.setdefault(name, []).append(result)


def _together(values: Tensor, columns: tuple[tuple[int, ...], ...]) -> Tensor:
    """Shares (B, H, Q, G) that are 0 where only other columns of their set are seen, NaN where none is."""
    unseen = values.isnan()
    for some in columns:
        none = unseen[..., list(some)].all(-1)
        for column in some:
            values[..., column].masked_fill_(unseen[..., column] & ~none, 0.0)
    return values


def _row_mean(values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean over the row axis of (B, H, Q[, G]) and how many rows it stands on; NaN where there is none."""
    shared = rows if rows.ndim == 2 else rows[..., 0]
    weights = shared[:, None] if values.ndim == 3 else (shared[..., None] if rows.ndim == 2 else rows)[:, None]
    weights = weights * ~values.isnan()
    total = weights.sum(2)
    # A row without weight may be infinite (KL): it must not become NaN.
    mean = torch.where(weights > 0, values, 0.0).mul(weights).sum(2) / torch.where(total > 0, total, torch.nan)
    return mean, (weights > 0).sum(2)
