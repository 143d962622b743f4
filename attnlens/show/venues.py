"""Where a figure will be printed: column width, fonts and font sizes, as tueplots knows them from the style files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tueplots import figsizes, fonts, fontsizes

from attnlens.core.errors import UnknownName
from attnlens.show.drawing import FONTS, STYLE, WIDE, truetype

# Where a venue's own font is missing: free fonts of the same widths, then those that come with matplotlib.
SERIF = ("Liberation Serif", "STIXGeneral", "DejaVu Serif", *FONTS)
INCH = 2.54  # centimetres


@dataclass(frozen=True)
class Venue:
    """One column of a venue in inches, its fonts with what may stand in for them, its font sizes in points."""

    name: str
    width: float
    families: tuple[str, ...]
    sizes: dict[str, Any]

    def settings(self) -> dict[Any, Any]:
        """What matplotlib draws under: the house's style with the venue's fonts, TrueType and embedded, no LaTeX."""
        return STYLE | self.sizes | {"font.family": truetype(self.families)}


def _venue(name: str, size: Callable[[], dict], sizes: dict[str, Any], font: dict[str, Any]) -> Venue:
    return Venue(name, size()["figure.figsize"][0], (*font["font.serif"], *SERIF), sizes)


def _acl() -> Venue:
    """Missing in tueplots: A4 with margins of 2.5 cm and 0.6 cm between the columns (acl.sty); Times."""
    width = (21.0 - 2 * 2.5 - 0.6) / 2 / INCH
    return Venue("acl", width, (*fonts.icml2024()["font.serif"], *SERIF), fontsizes.aaai2024())


VENUES: dict[str, Venue] = {
    venue.name: venue
    for venue in (
        _venue("neurips", figsizes.neurips2024, fontsizes.neurips2024(), fonts.neurips2024()),
        _venue("iclr", figsizes.iclr2024, fontsizes.iclr2024(), fonts.iclr2024()),
        _venue("icml", figsizes.icml2024_half, fontsizes.icml2024(), fonts.icml2024()),
        _acl(),
        _venue("aaai", figsizes.aaai2024_half, fontsizes.aaai2024(), fonts.icml2024()),
        Venue("plain", WIDE, FONTS, {}),
    )
}


def venue(name: str) -> Venue:
    """The venue of this name; UnknownName with the nearest one."""
    if name not in VENUES:
        raise UnknownName.among("venue", name, VENUES)
    return VENUES[name]
