"""Numbers, layers and intervals as sentences say them."""

import math

import numpy as np


def layer_names(layers: tuple[int, ...]) -> str:
    """Such as "layer 6" or "layers 3, 5 and 6": for readers, layers count from 1."""
    names = [str(layer + 1) for layer in sorted(layers)]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"


def signed(value: float, digits: int = 1) -> str:
    """`value` with its sign, a true minus, and no sign at zero: +1.2, −0.4, 0.0."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


def digits_of(*values: float) -> int:
    """Decimals that show the largest of some values: one, or as many as give it two digits."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    return 1 if largest >= 0.1 or largest == 0 else min(1 - math.floor(math.log10(largest)), 9)


def interval(low: float, high: float, digits: int) -> str:
    """Such as "95 % +4.7 … +12.9"."""
    if np.isnan(low) or np.isnan(high):
        return "no interval: too few documents"
    return f"95 % {signed(low, digits)} … {signed(high, digits)}"


def documents_of(count: float) -> str:
    """Such as "1 document" or "62 documents"."""
    return f"{count:.0f} document{'' if count == 1 else 's'}"


def p_value(value: float) -> str:
    """A p-value as papers write it: .042, < .001; nothing where there is none."""
    return "" if math.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
