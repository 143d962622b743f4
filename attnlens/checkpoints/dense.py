"""The dense maps of one attention, where a user asked for them: of chosen rows, as weights or as lengths of vectors."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from attnlens.checkpoints.values import lengths
from attnlens.core.errors import ShapeError, UnknownName
from attnlens.core.flow import summed_lengths
from attnlens.core.pairs import Logits
from attnlens.core.rows import dense_map

MAP = "map"  # the only "statistic" of a session that draws maps
WEIGHTED = ("heads", "layer")


@dataclass(frozen=True)
class Drawn:
    """What the maps are to show. queries: the rows, by their places in the batch; None: all.

    weighted: None, the weights; "heads", the lengths of the vectors that each head carries; "layer", of their sums.
    """

    queries: tuple[int, ...] | None = None
    weighted: str | None = None

    @classmethod
    def of(cls, queries: Iterable[int] | None, weighted: str | None) -> "Drawn":
        """Raise UnknownName where `weighted` is none of WEIGHTED."""
        if weighted is not None and weighted not in WEIGHTED:
            raise UnknownName.among("kind of value weighting", weighted, WEIGHTED)
        return cls(None if queries is None else tuple(int(query) for query in queries), weighted)

    def rows(self, length: int) -> list[int]:
        """The rows of a map of `length` rows; those behind the last one count from the end, as in a list."""
        chosen = range(length) if self.queries is None else self.queries
        if any(not -length <= row < length for row in chosen):
            raise ShapeError(f"queries must lie in {-length} … {length - 1}; got {list(chosen)}")
        return [row % length for row in chosen]

    def weights(self, logits: Logits) -> Tensor:
        """Softmax weights of the chosen rows (B, H, Q, K), without a learned null key."""
        query, key, scores = logits
        if self.queries is not None:
            rows = self.rows(query.shape[2])
            query, scores = query[:, :, rows], scores.at(rows, query.shape[2], key.shape[2])
        return dense_map(query, key, scores).weights[..., : key.shape[2]]

    def carried(self, weights: Tensor, value: Tensor, output: Tensor | None) -> Tensor:
        """The lengths (B, H, Q, K), or (B, 1, Q, K) of a layer's sums; NaN where the projection is unknown."""
        if self.weighted == "layer" and output is not None:
            return summed_lengths(weights, value, output)[:, None]
        return weights * lengths(value, output, weights.shape[1])[:, :, None]
