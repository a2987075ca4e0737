"""Numbers as a person writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_WRITTEN = {"f1": "F1", "auc": "AUC", "knn": "k-NN", "ema": "EMA", "std": "standard deviation", "us": "US"}


def number(value: float, digits: int = 3) -> str:
    """Three significant digits: 0.0123, 1.5×10⁻⁴; above 100 whole: 12,800; – where there is no number."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}"
    elif size >= 10 ** (digits - 1) or value == int(value):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def measure(value: float) -> str:
    """A measured value with three decimals, so that a column of them is aligned."""
    return f"{value:.3f}".replace("-", "−") if abs(value) < 10 else number(value)


def aligned(values: Sequence[float | None]) -> list[str]:
    """Values of one measure with as many decimals each; empty where there is none."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value)]
    decimals = 3 if max(sizes, default=0) < 10 else 1
    finite = [value if value is None or math.isfinite(value) else number(value) for value in values]
    texts = ["" if x is None else x if isinstance(x, str) else f"{x:,.{decimals}f}" for x in finite]
    return [text.replace("-", "−") for text in texts]


def as_fine(rows: Sequence[Mapping[str, Any]]) -> Callable[[float], str]:
    """Writes cosine similarities with the decimals, at most five, that tell the highest of neighbours from 1."""
    highest = max(other["similarity"] for row in rows for other in row["nearest"])
    decimals = min(1 + math.ceil(-math.log10(max(1 - highest, 1e-4))), 5) if highest > 0.9 else 2
    return lambda value: f"{value:.{decimals}f}".replace("-", "−")


def plain(name: str, capital: bool = False) -> str:
    """A name of the program as a person writes it: macro_f1 is macro F1."""
    words = [_WRITTEN.get(word, word) for word in name.split("_")]
    text = " ".join(words)
    return text[:1].upper() + text[1:] if capital and words[0] not in _WRITTEN.values() else text


def percent(share: float) -> str:
    """A share between 0 and 1: 0.4 %, 12 %."""
    return f"{100 * share:.1f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def count(amount: int, thing: str) -> str:
    """1 image, 1,234 images."""
    return f"{amount:,} {thing}{'' if amount == 1 else 's'}"


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """At most `most` + 1 round values from `low` to `high`, with their labels."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    small = max(abs(low), abs(high)) < 1e-3
    return [(i * step, number(i * step) if small else _tick(i * step, step)) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten from `low` to `high`, at most six."""
    first, last = math.ceil(math.log10(low) - 1e-6), math.floor(math.log10(high) + 1e-6)
    every = (last - first) // 6 + 1
    return [(10.0**i, number(10.0**i)) for i in range(first, last + 1, every)]


def _tick(value: float, step: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4 and step >= 100:
        return f"{value / 1e3:g}k"
    return f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", "−")
