"""Captions for LaTeX: every character of data as text, never as a command."""

import re

from attnlens.show.drawing import Drawing

SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "\u2212": "$-$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "·": "$\\cdot$",
    "√": "$\\surd$",
    "²": "$^2$",
    "≥": "$\\geq$",
    "≤": "$\\leq$",
    "→": "$\\rightarrow$",
    "Δ": "$\\Delta$",
    "Σ": "$\\Sigma$",
    "λ": "$\\lambda$",
    "…": "\\ldots{}",
    "–": "--",
    "‖": "$\\Vert$",
    "¹": "$^1$",
    "□": "?",
}


def escape(text: str) -> str:
    """`text` as LaTeX prints it; control characters are left out, letters beyond ASCII stay as UTF-8."""
    parts = "".join(SPECIAL.get(char, char) for char in text if char.isprintable())
    return re.sub(r"(?<!\\)\$\$", "", parts)  # neighbouring formulae become one; an escaped dollar stays


def caption(drawing: Drawing) -> str:
    """What a figure environment inputs: the finding in bold, what is drawn, and a label."""
    return (
        f"\\caption{{\\textbf{{{escape(drawing.title)}.}} {escape(drawing.caption)}}}\n\\label{{fig:{drawing.name}}}\n"
    )
