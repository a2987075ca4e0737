"""A contact sheet of phantoms, beside real pictures where there are any: python -m ussl.phantom --out sheet.png."""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw

from ussl.phantom.render import ORGANS, render

CAPTION = 13  # px under a picture


def tile(picture: Image.Image, caption: str, size: int) -> Image.Image:
    """A picture fitted into a square, with a line of text below."""
    sheet = Image.new("L", (size + 2, size + CAPTION), 40)
    scale = size / max(picture.size)
    fitted = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    sheet.paste(0, (1, 0, size + 1, size))
    sheet.paste(fitted, (1 + (size - fitted.width) // 2, (size - fitted.height) // 2))
    ImageDraw.Draw(sheet).text((3, size), caption, fill=220)
    return sheet


def phantoms(organ: str, size: int, count: int, seed: int, snr: float) -> list[Image.Image]:
    """Tiles of `count` patients of an organ, its labels in turn."""
    labels = ORGANS[organ].labels
    tiles = []
    for patient in range(count):
        label = labels[patient % len(labels)]
        image = render(seed, patient, 0, organ, label, size, snr).image
        tiles.append(tile(Image.fromarray(image), f"{organ} {label}", size))
    return tiles


def photographs(manifest: Path, size: int, count: int, seed: int) -> list[list[Image.Image]]:
    """A row of tiles for every organ of a manifest with the columns path and organ, brought to the phantoms' size."""
    with manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["path"]).suffix.lower() in (".png", ".jpg", ".jpeg")]
    sheet = []
    for organ in sorted({row["organ"] for row in rows}):
        paths = [row["path"] for row in rows if row["organ"] == organ]
        chosen = random.Random(seed).sample(paths, min(count, len(paths)))
        pictures = [Image.open(manifest.parent / path).convert("L") for path in chosen]
        sheet.append([tile(picture, f"real {organ}", size) for picture in pictures])
    return sheet


def stack(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of equal tiles as one picture."""
    width, height = rows[0][0].size
    sheet = Image.new("L", (width * max(map(len, rows)), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Write the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m ussl.phantom", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--real", type=Path, help="a manifest.csv (columns path, organ) of real pictures")
    parser.add_argument("--organs", nargs="+", default=list(ORGANS), choices=list(ORGANS))
    parser.add_argument("--size", type=int, default=192, help="px of a picture")
    parser.add_argument("--count", type=int, default=6, help="pictures in a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snr", type=float, default=60.0, help="dB")
    given = parser.parse_args(arguments)
    rows = [phantoms(organ, given.size, given.count, given.seed, given.snr) for organ in given.organs]
    if given.real:
        rows += photographs(given.real, given.size, given.count, given.seed)
    stack(rows).save(given.out)
    print(f"{given.out}: {sum(map(len, rows))} pictures")


if __name__ == "__main__":
    main()
