"""What methods that choose blocks chose: is it the same in every seed, and more than a control would choose?"""

from typing import Any

import numpy as np
import pandas as pd

from attnlens.analysis.studies.cells import Cell
from attnlens.training.overlap import jaccard

COLUMNS = ["arm", "seed", "blocks", "last_k", "first_k", "rms", "other_seeds", "shuffled", "chance"]


def selections(rows: dict[Cell, dict[str, Any]]) -> pd.DataFrame:
    """One row a cell whose method chose blocks: the last choice, and its Jaccards in 0..1.

    columns arm, seed, blocks (numbers from 1), last_k, first_k, rms (the blocks of smallest weights), other_seeds
    (mean over the same arm's other seeds), shuffled (the choice of the twin), chance (what a random set of this number
    expects of any of them); NaN where there is nothing to hold it against.
    """
    overlaps = {cell: row["record"].get("selection_overlap") for cell, row in rows.items()}
    chosen = {cell: overlap["active"] for cell, overlap in overlaps.items() if overlap is not None}
    table = []
    for cell, blocks in chosen.items():
        overlap = overlaps[cell]
        others = [jaccard(blocks, other) for key, other in chosen.items() if key.arm == cell.arm and key != cell]
        twin = (rows[cell]["twin"] or {}).get("selection_overlap") or {}
        table.append(
            {
                "arm": cell.arm,
                "seed": cell.seed,
                "blocks": " ".join(str(block + 1) for block in blocks),
                **overlap["jaccard"],
                "other_seeds": float(np.mean(others)) if others else np.nan,
                "shuffled": twin.get("real", np.nan),
                "chance": overlap["chance"],
            }
        )
    return pd.DataFrame(table, columns=COLUMNS)
