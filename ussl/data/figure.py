"""The picture of a corpus, as the first figure of the URFM paper: bars by organ and source, and a ring of organs."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from ussl.data import bars, ring
from ussl.data.contents import Contents
from ussl.data.lettering import INK, LINE, PAPER, SOFT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(contents: Contents) -> Figure:
    """Bars and ring side by side."""
    from matplotlib.figure import Figure

    stacks, shares = bars.stacks(contents), ring.shares(contents)
    height = max(bars.height(stacks), ring.height(shares))
    figure = Figure(figsize=(bars.WIDTH + ring.WIDTH, height), facecolor=PAPER)
    halves: Any = figure.subfigures(1, 2, width_ratios=(bars.WIDTH, ring.WIDTH))
    bars.draw(halves[0], stacks, height)
    ring.draw(halves[1], shares, height)
    return figure


def draw_bars(contents: Contents) -> Figure:
    """The bars alone."""
    from matplotlib.figure import Figure

    stacks = bars.stacks(contents)
    figure = Figure(figsize=(bars.WIDTH, bars.height(stacks)), facecolor=PAPER)
    bars.draw(figure, stacks, bars.height(stacks))
    return figure


def draw_ring(contents: Contents) -> Figure:
    """The ring alone."""
    from matplotlib.figure import Figure

    shares = ring.shares(contents)
    figure = Figure(figsize=(ring.WIDTH, ring.height(shares)), facecolor=PAPER)
    ring.draw(figure, shares, ring.height(shares))
    return figure


def saved(figure: Figure, kind: str, dots: int) -> bytes:
    """The figure as a file: svg, pdf (letters as outlines and as text) or png, of `dots` an inch."""
    import matplotlib

    file = io.BytesIO()
    dated = {"svg": "Date", "pdf": "CreationDate"}.get(kind)  # left out: equal pictures are equal files
    with matplotlib.rc_context({"svg.hashsalt": "ussl", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=dots, metadata={dated: None} if dated else None)
    return file.getvalue()


def inline(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page: its ids begin with `name`, its paper and ink are the page's."""
    text = saved(figure, "svg", 72).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for word, color in {"ink": INK, "soft": SOFT, "line": LINE, "paper": PAPER}.items():
        text = text.replace(color, f"var(--{word})")
    return re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)
