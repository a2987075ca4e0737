"""Where in a DICOM picture the scan is: the regions that the scanner wrote down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ussl.data.dicom import Header
from ussl.data.dicom_elements import items, numbers

Box = tuple[int, int, int, int]  # y, x, height, width
_CENTIMETRES = 3  # of Physical Units X Direction
_TWO_DIMENSIONAL = 1  # of Region Spatial Format


@dataclass(frozen=True, slots=True)
class Scan:
    """The part of a picture to learn from."""

    box: Box  # around all 2-D regions; the whole picture where there is none to use
    pixel_mm: float | None  # width of a pixel, of the largest region used, else of the picture
    flag: str | None  # what is wrong with a region that was not used


def scan(header: Header) -> Scan:
    """The union of the 2-D regions, corners included, that lie in the picture; one may end a pixel past its edge."""
    flags, used = set(), []
    for item in items(header.tags, "SequenceOfUltrasoundRegions"):
        if numbers(item, "RegionSpatialFormat") != [_TWO_DIMENSIONAL]:
            continue
        corners = _corners(item)
        if corners is None:
            flags.add("region_malformed")
        elif _outside(corners, header):
            flags.add("region_outside")
        else:
            used.append((_box(corners, header), _millimetres(item)))
    flag = ";".join(sorted(flags)) or None
    scales = [mm for box, mm in sorted(used, key=lambda one: -one[0][2] * one[0][3]) if mm]
    return Scan(_union([box for box, _ in used], header), scales[0] if scales else _spacing(header.tags), flag)


def _corners(item: Any) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 of a region, both corners inside; None = they are missing or in the wrong order."""
    names = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    found = [value for name in names for value in numbers(item, f"RegionLocation{name}")[:1]]
    if len(found) < 4 or any(value != int(value) for value in found):
        return None
    x0, y0, x1, y1 = (int(value) for value in found)
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def _outside(corners: tuple[int, int, int, int], header: Header) -> bool:
    x0, y0, x1, y1 = corners
    inside = 0 <= x0 < header.columns and 0 <= y0 < header.rows
    return not inside or x1 > header.columns or y1 > header.rows


def _box(corners: tuple[int, int, int, int], header: Header) -> Box:
    x0, y0, x1, y1 = corners
    return y0, x0, min(y1 + 1, header.rows) - y0, min(x1 + 1, header.columns) - x0


def _union(boxes: list[Box], header: Header) -> Box:
    if not boxes:
        return 0, 0, header.rows, header.columns
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    return top, left, max(y + h for y, _, h, _ in boxes) - top, max(x + w for _, x, _, w in boxes) - left


def _millimetres(item: Any) -> float | None:
    delta = numbers(item, "PhysicalDeltaX")
    if numbers(item, "PhysicalUnitsXDirection") != [_CENTIMETRES] or not delta:
        return None
    return _positive(abs(delta[0]) * 10)


def _spacing(tags: Any) -> float | None:
    """Millimetres between columns."""
    spacing = numbers(tags, "PixelSpacing")
    return _positive(spacing[1]) if len(spacing) == 2 else None


def _positive(millimetres: float) -> float | None:
    return float(f"{millimetres:.6g}") if 0 < millimetres < float("inf") else None
