"""`ussl data summary`: what a manifest holds, as tables, as a picture and as a page."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ussl.data import contents
from ussl.data.contents import Contents, Part, Spread
from ussl.data.sampling import NOT_SAID
from ussl.report.words import count, number, percent

PICTURES = (".svg", ".pdf", ".png")
_DOTS = 200  # an inch, of PNG
_THREE = "a / b / c: least, median, most; without: images without a patient"


def command(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Print the tables, or JSON, and write the picture and the page where asked for."""
    figure = _named("--figure", args.figure, PICTURES)
    page = _named("--html", args.html, (".html", ".htm"))
    found = contents.read(args.manifest)
    print(json.dumps(as_json(found), indent=2, ensure_ascii=False) if args.json else "\n".join(lines(found)))
    written = {figure: picture, page: render}
    for path, make in written.items():
        if path is not None:
            replace(path, make(found, path.suffix[1:].lower()))
            if not args.json:
                print(f"\nwritten: {path}")
    return 0


def as_json(found: Contents) -> dict[str, Any]:
    """The contents in the types that JSON has."""
    return {**asdict(found), "manifest": str(found.manifest), "images": found.images}


def picture(found: Contents, kind: str) -> bytes:
    """Bars and ring as a file of that kind: svg, pdf or png."""
    from ussl.data.figure import draw, saved

    return saved(draw(found), kind, _DOTS)


def render(found: Contents, kind: str = "html") -> bytes:
    """The page: one HTML file that needs no other."""
    from importlib import resources

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from ussl.data.figure import draw_bars, draw_ring, inline

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    style, template = (
        (resources.files(package) / name).read_text(encoding="utf-8")
        for package, name in (("ussl.report", "page.css"), ("ussl.data", "summary.html.jinja"))
    )
    page = environment.from_string(template).render(
        style=Markup(style),
        title=found.manifest.name,
        found=found,
        facts=dict(_facts(found)),
        drawings={"bars": Markup(inline(draw_bars(found), "bars")), "ring": Markup(inline(draw_ring(found), "ring"))},
        organs=organ_table(found),
        three=_THREE,
        tables={name.capitalize(): table for name, table in _tables(found).items()},
        labels=[(organ.name, _counted(organ.labels)) for organ in found.organs] if found.says_label else [],
        flags=_counted(found.flags),
        regions=_counted(found.regions),
    )
    return page.encode()


def lines(found: Contents) -> Iterator[str]:
    """All tables as text."""
    yield f"{found.manifest}: {count(found.images, 'image')}"
    yield from ("", *aligned(organ_table(found), 2))
    for table in _tables(found).values():
        yield from ("", *aligned(table, 1))
    yield from (f"({_THREE})", "")
    if found.says_label:
        yield "labels"
        yield from (f"  {organ.name}: {_counted(organ.labels)}" for organ in found.organs)
    else:
        yield f"labels: {NOT_SAID}"
    if not found.splits:
        yield f"splits: {NOT_SAID}"
    yield f"flags: {_counted(found.flags)}"
    yield f"regions: {_counted(found.regions)}"


def organ_table(found: Contents) -> list[list[str]]:
    """Organ, source, images, subtotal, as the URFM paper's Table 1, sums at the end; the first row names them."""
    table = [["organ", "source", "images", "subtotal"]]
    for organ in found.organs:
        for i, (source, images) in enumerate(organ.sources.items()):
            first = (organ.name, f"{organ.images:,}") if i == 0 else ("", "")
            table.append([first[0], source, f"{images:,}", first[1]])
    organs = count(len(found.organs), "organ") if found.says_organ else f"organ {NOT_SAID}"
    return [*table, [organs, count(len(found.sources), "source"), f"{found.images:,}", f"{found.images:,}"]]


def part_table(what: str, parts: Mapping[str, Part]) -> list[list[str]]:
    """Images, patients, sizes and channels of some parts; the first row names the columns."""
    table = [[what, "images", "patients", "images of each", "without", "width", "height", "grey", "colour"]]
    for name, part in parts.items():
        told = part.grey + part.colour > 0
        table.append(
            [
                name,
                f"{part.images:,}",
                _groups(part),
                _spread(part.of_each),
                f"{part.alone:,}",
                _spread(part.width),
                _spread(part.height),
                f"{part.grey:,}" if told else NOT_SAID,
                f"{part.colour:,}" if told else NOT_SAID,
            ]
        )
    return table


def _tables(found: Contents) -> dict[str, list[list[str]]]:
    """The tables of sources and of splits, where there are any."""
    several = {"all sources": found.all} if len(found.sources) > 1 else {}
    tables = {"sources": part_table("source", found.sources | several)}
    return tables | ({"splits": part_table("split", found.splits)} if found.splits else {})


def _facts(found: Contents) -> Iterator[tuple[str, str]]:
    """The numbers at the top of the page."""
    yield "images", f"{found.images:,}"
    yield "organs", f"{len(found.organs):,}" if found.says_organ else NOT_SAID
    yield "sources", f"{len(found.sources):,}"
    yield "patients", _groups(found.all)
    if found.all.of_each:
        yield "images of each, median", number(found.all.of_each.median)
    if found.all.alone:
        yield "images without a patient", f"{found.all.alone:,}"
    if found.all.grey + found.all.colour:
        yield "grey", percent(found.all.grey / (found.all.grey + found.all.colour))
    if found.all.width and found.all.height:
        yield "median size", f"{found.all.width.median:,.0f} × {found.all.height.median:,.0f}"


def _groups(part: Part) -> str:
    """1,234; 12 cases; 1,200 and 12 cases."""
    if not part.groups:
        return NOT_SAID
    words = (f"{many:,}" if kind == "patient" else count(many, kind) for kind, many in part.groups.items())
    return " and ".join(words)


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return NOT_SAID
    return " / ".join(f"{x:,.0f}" if x == int(x) else f"{x:,.1f}" for x in (spread.least, spread.median, spread.most))


def _counted(counts: Mapping[str, int]) -> str:
    """benign 200, normal 100; none where there are none."""
    return ", ".join(f"{name} {images:,}" for name, images in counts.items()) or "none"


def aligned(table: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Lines of a table whose first `left` columns are text, and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(widths[i]) if i < left else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        yield "  ".join(cells).rstrip()


def _named(option: str, path: str | None, ends: Sequence[str]) -> Path | None:
    """Where to write; ValueError for a name with another end, a folder, or one in a folder that is not there."""
    if path is None:
        return None
    file = Path(os.path.abspath(path))
    if file.suffix.lower() not in ends:
        raise ValueError(f"{option} {path}: write a name with {' or '.join(ends)} at its end")
    if file.is_dir():
        raise ValueError(f"{option} {path}: this is a folder")
    if not file.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {file.parent}")
    return file


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
