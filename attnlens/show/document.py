"""A page that asks the network for nothing: template, one sheet, one script, and a policy that allows only these."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

VIEWER = Path(__file__).parent / "viewer"


def document(template: str, content: dict[str, Any]) -> str:
    """The page that a template of `viewer/` makes of its content; every value is escaped."""
    sheet, script = ((VIEWER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    fixed = {"sheet": Markup(sheet), "script": Markup(script), "policy": policy(sheet, script)}
    return _environment().get_template(template).render(fixed | content)


def policy(sheet: str, script: str) -> str:
    """The Content-Security-Policy under which this sheet and this script run, and nothing else."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(sheet)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(VIEWER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
