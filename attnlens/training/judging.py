"""How good the saved step is, beyond the scores that chose it: class by class, and on rows that it has seen."""

from typing import Any

from transformers import EvalPrediction, Trainer

from attnlens.training.work import Row, Work, of_texts

# What a task may measure beside the loss.
SCORES = ("accuracy", "exact_match", "macro_f1", "micro_f1", "entity_f1", "perplexity")


def evaluation(entry: dict[str, Any]) -> dict[str, float]:
    """Loss and scores of one evaluation in the Trainer's log.

    The Trainer's own loss is a mean of batch means, in which the tokens of small batches weigh more: a task that
    predicts tokens measures `token_loss` itself.
    """
    loss = entry.get("eval_token_loss", entry["eval_loss"])
    return {"loss": loss, **{name: entry[f"eval_{name}"] for name in SCORES if f"eval_{name}" in entry}}


def judged(trainer: Trainer, work: Work) -> dict[str, Any]:
    """What the model predicts, for the record: `per_class` of the held-out rows, and the overfitting `gap`.

    per_class: see `class_table`; None for a language model. gap: loss and scores on as many `rows` of the training data
    at most as are held out, beside those on the held-out ones, both without dropout. Large distances are overfitting.
    """
    seen = work.seen
    on_seen, _ = _predicted(trainer, work, seen)
    on_heldout, prediction = _predicted(trainer, work, work.heldout)
    return {
        "per_class": work.table(of_texts(prediction, work.heldout)) if work.table is not None else None,
        "gap": {"rows": len(seen), "train": on_seen, "heldout": on_heldout},
    }


def _predicted(trainer: Trainer, work: Work, rows: list[Row]) -> tuple[dict[str, float], EvalPrediction]:
    """Loss and scores on `rows`, and the predictions; not `evaluate`, which callbacks take for one of the run's."""
    kept, trainer.compute_metrics = trainer.compute_metrics, work.measure_of(rows)
    try:
        found = trainer.predict(rows, metric_key_prefix="eval")  # pyright: ignore[reportArgumentType]
    finally:
        trainer.compute_metrics = kept
    assert found.metrics is not None and found.label_ids is not None
    return evaluation(found.metrics), EvalPrediction(predictions=found.predictions, label_ids=found.label_ids)
