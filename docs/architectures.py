"""Writes docs/architectures.md: what `record` makes of every model type of transformers' text mappings.

A few minutes on one core. Usage: python docs/architectures.py. A test holds the page to what the models do.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import transformers  # noqa: E402 - the repository's tests are importable from its root alone

from tests.zoo import MAPPINGS, OUTPUT, TOLERANCE, Outcome, outcomes  # noqa: E402 - as above

ORDER = ("exact", "refused", "not built", "out of scope", "failed")
ROUTES = {"interface": "interface", "weights": "weights handed back", "": ""}


def counted(found: Sequence[Outcome]) -> str:
    """'180 exact, 20 refused …' of all types."""
    counts = Counter(outcome.status for outcome in found)
    return ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])


def page(found: Sequence[Outcome]) -> str:
    """The whole page."""
    rows = [
        "| model type | mapping | outcome | route | statistics | output | reason |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in sorted(found, key=lambda outcome: (ORDER.index(outcome.status), outcome.model_type)):
        errors = [f"{error:.0e}" if error == error else "" for error in (each.error, each.output)]  # NaN
        cells = (each.model_type, each.task, each.status, ROUTES[each.route], *errors, each.reason.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    parts = [
        "# Architectures",
        f"Written by `docs/architectures.py` with transformers {transformers.__version__}: every model type of the "
        f"{', '.join(MAPPINGS)} mappings, as a tiny random model, on a batch padded left and one padded right. Of "
        f"{len(found)} types: {counted(found)}.",
        "**exact**: entropy, largest weight, Rényi-2 entropy and both received statistics under `record` equal those "
        "of the model's own eager weights, reduced one row at a time (in float64 where the model computes in it), "
        f"within {TOLERANCE:.0e} of the largest value, and the output in float32 equals that without `record` within "
        f"{OUTPUT:.0e} (columns: the largest error seen). "
        "**refused**: attnlens says that it cannot measure it, and why. **not built**: its config fits no tiny model "
        "here. **out of scope**: not text alone. None may be silently wrong: a test runs every type.",
        "Route *interface*: queries and keys come through transformers' attention interface, and everything attnlens "
        "knows can be measured. Route *weights handed back*: the model computes attention elsewhere and hands its "
        "weights back; they are reduced layer by layer. Logits and values stay unknown there: `lse`, `share_value` and "
        "the divergences between two models have no data, and keys cannot be hidden.",
        "\n".join(rows),
        "A type that is missing or refused: see [new_architecture.md](new_architecture.md).",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (HERE / "architectures.md").write_text(page(list(outcomes())), encoding="utf-8")
