"""One text of a comparison in a notebook: the report's viewer in a frame of its own."""

from dataclasses import dataclass
from html import escape

from attnlens.analysis.results import Comparison, Passage
from attnlens.core.errors import AttnlensError
from attnlens.show.document import document
from attnlens.show.island import island
from attnlens.show.word_figures import is_causal

# Pixels: controls, readout, headings and table; then about a line of text in three panes for so many characters.
FIXED, LINE, CHARACTERS, TALLEST = 680, 34, 52, 1200


@dataclass(frozen=True, repr=False)
class View:
    """A text with who looks at whom; shows itself in notebooks, offline. page: the same as one HTML document."""

    page: str
    title: str
    height: int

    def __repr__(self) -> str:
        """What it shows, where it cannot show it."""
        return f"{self.title}: to be seen in a notebook; `.page` is the HTML"

    def _repr_html_(self) -> str:
        """A frame: ids, styles and scripts of several views, and of the notebook, stay apart."""
        source, title = escape(self.page), escape(self.title)
        return (
            f'<iframe srcdoc="{source}" title="{title}" width="100%" height="{self.height}" frameborder="0" '
            'sandbox="allow-scripts"></iframe>'
        )


def view(comparison: Comparison, example: int = 0) -> View:
    """The viewer on one of the texts that a comparison keeps, counted from 0: `comparison.passages[example]`.

    Raises AttnlensError where no text was kept, or not so many.
    """
    texts = comparison.passages
    if not texts:
        raise AttnlensError("this comparison keeps no text: compare with CompareOptions(passages=8), without --no-text")
    if not 0 <= example < len(texts):
        raise AttnlensError(f"example must lie in 0 … {len(texts) - 1}, the texts this comparison keeps; got {example}")
    passage = texts[example]
    title = f"{passage.id}: {' and '.join(comparison.models)}"
    content = {
        "title": title,
        "salience": comparison.salience,
        "causal": is_causal(comparison),
        "island": island(comparison, (passage,), room=float("inf")),
    }
    return View(document("view.html.j2", content), title, _height(passage))


def _height(passage: Passage) -> int:
    lines = len("".join(passage.words)) // CHARACTERS + 1
    return min(TALLEST, FIXED + int(1.5 * LINE * lines))
