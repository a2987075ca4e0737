"""Text in the pictures of a corpus: its ink and size, how wide it is, and how names and counts are shortened."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

INK, SOFT, LINE, PAPER = "#1c2430", "#5b6675", "#dfe3e8", "#fffffe"  # report/page.css has variables of these names
SIZE = 9  # points of text
HEIGHT = 0.155  # inches of a line of text


def first(counts: Mapping[str, int], most: int, thing: str) -> dict[str, int]:
    """The first of them, and where there are more than `most` the others together."""
    if len(counts) <= most:
        return dict(counts)
    names = [*counts]
    rest = names[most - 1 :]
    return {name: counts[name] for name in names[: most - 1]} | {
        f"{len(rest)} other {thing}s": sum(counts[name] for name in rest)
    }


def wrapped(name: str, width: int, most: int = 2) -> list[str]:
    """A name in at most so many lines of `width` letters."""
    lines = textwrap.wrap(" ".join(name.split()), width) or [""]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 1].rstrip() + "…"]
    return [line.replace("$", r"\$") for line in lines]  # which would begin a formula


def inches(text: str) -> float:
    """The width of a line of text, with some room, since letters on pixels are wider than letters on paper."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text or " ", size=SIZE).get_extents().width) / 72 * 1.07 + 0.04
