"""How far the hidden states of each layer moved on the same texts: debiased CKA and the relative change, streamed.

Axes: M model, N text, L layer, B text of a batch, T token, D width. There are L + 1 states: what enters the first block
is number 0, then what each block gives; the last is the model's own last hidden state, in most decoders after the
final norm. Tokens that count are those that are neither padding nor special, nor position 0 of a decoder: as a sink it
has a norm hundreds of times that of any word, and CKA would see nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlens.analysis.prepare import Batch, Prepared, assemble, is_causal, plan
from attnlens.checkpoints.load import Checkpoint
from attnlens.core.errors import CheckpointError, CorpusError, ShapeError
from attnlens.core.resampling import document_means
from attnlens.core.similarity import Similarity, relative_change

Array = NDArray[np.float64]

COLUMNS = ("model layer cka relative n tokens skipped").split()


class HiddenPair:
    """Streams the states of base and one tuned model, batch by batch.

    It holds L + 1 sums and one row per text, whatever the width and length. `update` works on one layer at a time:
    beside the states it was given it takes two float64 copies of that layer's counted tokens, and min(D, n)² numbers.
    """

    def __init__(self) -> None:
        self._similar: list[Similarity] = []
        self._relative: list[Array] = []

    def update(self, base: Sequence[Tensor], tuned: Sequence[Tensor], valid: Tensor) -> None:
        """One batch: L + 1 states (B, T, D) of either model, and valid (B, T) bool, the tokens that count."""
        shapes = {tuple(state.shape[:2]) for state in (*base, *tuned)}
        if len(base) != len(tuned) or shapes != {tuple(valid.shape)}:
            raise ShapeError(
                f"the same layers and tokens of both models are needed; got {len(base)} and {len(tuned)} states over "
                f"{sorted(shapes)} and valid {tuple(valid.shape)}. Run both models on one batch."
            )
        if self._similar and len(self._similar) != len(base):
            raise ShapeError(f"{len(self._similar)} states came before; got {len(base)}. Use one HiddenPair per model.")
        self._similar = self._similar or [Similarity()] * len(base)
        text = valid.nonzero()[:, 0].cpu().numpy()
        counts = np.bincount(text, minlength=len(valid))
        rows = np.full((len(valid), len(base)), np.nan)
        for layer, (old, new) in enumerate(zip(base, tuned, strict=True)):
            old, new = old[valid], new[valid]  # (B, T, D) -> (n, D)
            self._similar[layer] = self._similar[layer].merge(Similarity.of(old, new))
            total = np.bincount(text, relative_change(old, new).cpu().numpy(), minlength=len(valid))
            rows[counts > 0, layer] = total[counts > 0] / counts[counts > 0]
        self._relative.append(rows)

    @property
    def relative(self) -> Array:
        """‖h′ − h‖ / ‖h‖, mean over the tokens of a text: (N, L + 1) as the updates came, NaN without tokens."""
        return np.concatenate(self._relative) if self._relative else np.empty((0, len(self._similar)))

    def frame(self, documents: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a state, as COLUMNS without the model.

        cka: over all tokens, 1 for equal geometry, NaN where it is unknown; relative: mean over document means
        (documents (N,) in the order of the updates; None: each text by itself); n: documents with data; tokens: that
        cka saw; skipped: tokens of batches with fewer than four.
        """
        names = np.arange(len(self.relative)) if documents is None else np.asarray(documents)
        means = document_means(self.relative, names)
        known = ~np.isnan(means)
        n = known.sum(0)
        total = np.where(known, means, 0.0).sum(0)
        return pd.DataFrame(
            {
                "layer": np.arange(len(self._similar)),
                "cka": [similar.cka for similar in self._similar],
                "relative": np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0),
                "n": n,
                "tokens": [similar.tokens for similar in self._similar],
                "skipped": [similar.skipped for similar in self._similar],
            }
        )


@dataclass(frozen=True, eq=False)
class HiddenChange:
    """relative (M − 1, N, L + 1): mean over the tokens of a text, NaN without any; table: one row a model and state.

    `relative` goes through document means like any measure of texts. The CKA of the table has no interval: tokens of
    one text are no independent draws.
    """

    relative: Array
    table: pd.DataFrame


def hidden_change(models: Sequence[Checkpoint], prepared: Prepared, *, batch_size: int = 16) -> HiddenChange:
    """Each tuned model's hidden states held against those of the first model, on the prepared texts.

    One pass a model. Memory: the base's states of one batch stay until the last tuned model has run, beside them one
    tuned model's: 2 · (L + 1) · B · T · D in the model's dtype. Raises CheckpointError for states that are no numbers.
    """
    if len(models) < 2:
        raise CorpusError(f"a base and at least one tuned model are needed; got {len(models)} models.")
    pairs = [HiddenPair() for _ in models[1:]]
    order = []
    for indices in plan(prepared, batch_size):
        batch = assemble(prepared, indices, models[0])
        valid = counted(prepared, batch, decoder=is_causal(models[0].backbone))
        kept = states(models[0], batch, valid)
        for pair, checkpoint in zip(pairs, models[1:], strict=True):
            pair.update(kept, states(checkpoint, assemble(prepared, indices, checkpoint), valid), valid)
        order.append(indices)
    position = np.concatenate(order)
    back = np.argsort(position, kind="stable")
    documents = np.array([example.document for example in prepared.examples])[position]
    tables = [
        pair.frame(list(documents)).assign(model=checkpoint.name)
        for pair, checkpoint in zip(pairs, models[1:], strict=True)
    ]
    table = pd.concat(tables, ignore_index=True).reindex(columns=COLUMNS)
    return HiddenChange(np.stack([pair.relative[back] for pair in pairs]), table)


def counted(prepared: Prepared, batch: Batch, *, decoder: bool) -> Tensor:
    """(B, T) bool: tokens of a batch that are neither padding nor special, nor position 0 of a decoder."""
    valid = torch.zeros(batch.ids.shape, dtype=torch.bool)
    for row, index in enumerate(batch.indices):
        special = prepared.encodings[index].special
        valid[row, : len(special)] = torch.from_numpy(~special)
    if decoder:
        valid[:, 0] = False
    return valid.to(batch.ids.device)


def states(checkpoint: Checkpoint, batch: Batch, valid: Tensor) -> list[Tensor]:
    """The L + 1 hidden states (B, T, D) of a batch, without virtual tokens, in the model's dtype and on its device."""
    with torch.inference_mode(), checkpoint.active():
        output = checkpoint.backbone(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    found = [state[:, -batch.ids.shape[1] :] for state in output.hidden_states]
    if not all(bool(state[valid].isfinite().all()) for state in found):
        raise CheckpointError(
            f"{checkpoint.name} gives hidden states that are no numbers: its weights or activations are not finite"
        )
    return found
