"""A small table for notebooks: a title, and what is known under it."""

from collections.abc import Mapping
from html import escape
from typing import Any


def card(title: str, facts: Mapping[str, Any]) -> str:
    """HTML of a table with a row for each fact; what is None or empty has none. All of it is escaped."""
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None and value != ""
    ]
    return f'<table><thead><tr><th colspan="2">{escape(title)}</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
