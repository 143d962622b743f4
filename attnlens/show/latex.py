"""Captions and tables for LaTeX: every character of data as text, never as a command."""

import re
from collections.abc import Collection, Mapping, Sequence

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
    "ᵀ": "$^\\top$",
    "α": "$\\alpha$",
    "₀": "$_0$",
    "●": "$\\bullet$",
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


def booktabs(
    name: str,
    caption: str,
    columns: Mapping[str, Sequence[str]],
    *,
    words: Collection[str] = (),
    bold: Collection[tuple[int, str]] = (),
) -> str:
    """A table environment with rules of the booktabs package.

    columns: title → cells, as text. words: titles of columns set left. bold: cells by row, from 0, and title.
    """
    places = "".join("l" if title in words else "r" for title in columns)
    cells = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = [
        " & ".join(
            f"\\textbf{{{escape(text)}}}" if (number, title) in bold else escape(text) for title, text in row.items()
        )
        for number, row in enumerate(cells)
    ]
    rows = [f"{{}}{row}" if row.startswith(("[", "*")) else row for row in rows]  # else an argument of the break before
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering\\small",
            f"\\caption{{{escape(caption)}}}",
            f"\\label{{tab:{name}}}",
            f"\\begin{{tabular}}{{@{{}}{places}@{{}}}}",
            "\\toprule",
            f"{' & '.join(map(escape, columns))} \\\\",
            "\\midrule",
            *(f"{row} \\\\" for row in rows),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
            "",
        ]
    )
