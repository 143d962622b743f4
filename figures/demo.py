"""The README's picture: the layer profile of `attnlens demo` (all-MiniLM-L6-v2, ALF and its null, seed 0, 200 texts).

Runs the demo into ./demo, or takes the one that is there, and keeps the figure, its numbers and its caption.
"""

import shutil
from pathlib import Path

from attnlens.show.demo import run_demo

HERE = Path(__file__).parent
NAMES = ("layer_profile", "focus_heads", "selection")

result = run_demo(HERE.parent / "demo")
for name in NAMES:
    for source in sorted((result.directory / "figures").glob(f"{name}.*")):
        if source.suffix != ".svg":
            shutil.copy(source, HERE / f"demo_{source.name}")
print(result.comparison.answer)
