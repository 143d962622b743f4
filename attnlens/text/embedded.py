"""The corpora that come with attnlens: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

from attnlens.core.errors import CorpusError

PACKAGE = Path(__file__).parent.parent


def embedded(name: str) -> Path:
    """The file of an embedded corpus: `contracts_train`, `contracts_eval` or `probe`."""
    for folder in (PACKAGE / "data", PACKAGE.parent / "data"):
        path = folder / f"{name}.jsonl"
        if path.is_file():
            return path
    raise CorpusError(f"the embedded corpus {name!r} is missing from this installation: install attnlens again")
