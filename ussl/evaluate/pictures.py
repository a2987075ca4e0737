"""Labelled pictures to measure an encoder on: which rows of a source, and their pixels, decoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ussl.evaluate.features import features_of, squared
from ussl.parts import Encoder, Source

USUAL_SIZE = 224  # pixels, where neither the options nor the encoder name a size

Row = Mapping[str, Any]


def missing(value: Any) -> bool:
    """Whether a cell of a table is empty: None, "" or NaN."""
    return value is None or value == "" or value != value


class Pictures:
    """Pictures of a source as squares in memory, as the encoder that is asked first wants them.

    They are decoded again only where another encoder wants another size, or pictures that underwent something else
    (raw pixels are measured on sharp ones, whatever the encoder beside them). They take n x size x size bytes (735 at
    224 pixels: 37 MB), three times that in colour.

    Args:
        source: of the pictures.
        size: side in pixels; None: the encoder's `image_size`, else the last size used, else 224.
        limit: at most so many images, drawn at random, the same ones every time; None: all.
    """

    def __init__(self, source: Source, *, size: int | None = None, limit: int | None = None) -> None:
        for name, value, least in (("size", size, 1), ("limit", limit, 2)):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, and must be at least {least}, or null")
        self.source, self.size, self.limit = source, size, limit
        self._squares: list[np.ndarray] = []
        self._side: int | None = None
        self._preprocess: dict[str, float] = {}

    @cached_property
    def rows(self) -> list[Row]:
        """The rows measured, in the source's order. ValueError: there are none."""
        rows = some(self.source)
        return [rows[i] for i in draw(range(len(rows)), self.limit)]

    def features(self, encoder: Encoder, device: torch.device) -> np.ndarray:
        """(n, D) float32, in the order of `rows`. ValueError: a picture that cannot be read."""
        side = self.size or getattr(encoder, "image_size", None) or self._side or USUAL_SIZE
        preprocess = dict(encoder.preprocess)
        if (side, preprocess) != (self._side, self._preprocess):
            self._squares = [_square(self.source, row, side, preprocess) for row in self.rows]
            self._side, self._preprocess = side, preprocess
        return features_of((squared(square, side) for square in self._squares), encoder, device)


class LabelledPictures(Pictures):
    """Pictures with a label and, where one patient can have several, the patient.

    Args:
        source: of the pictures.
        label: column of the labels; rows without one are left out and counted in `unlabelled`.
        group: column of the patients; None: every image is a patient of its own.
        size: as for `Pictures`.
        limit: at most so many images: one of every patient first, then a second of each, and so on.
    """

    def __init__(
        self,
        source: Source,
        *,
        label: str,
        group: str | None,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(source, size=size, limit=limit)
        self.label, self.group = label, group

    @cached_property
    def _all(self) -> tuple[list[Row], int]:
        """The labelled rows, and how many have no label."""
        rows = some(self.source)
        if self.label not in (columns := _columns(rows)):
            raise ValueError(f"no column {self.label!r} with labels; write label: one of {', '.join(columns)}")
        if self.group is not None and self.group not in columns:
            raise ValueError(
                f"no column {self.group!r} that says whose image it is; write group: one of {', '.join(columns)}, or "
                "group: null when no patient has two images"
            )
        labelled = [row for row in rows if not missing(row.get(self.label))]
        return labelled, len(rows) - len(labelled)

    @cached_property
    def rows(self) -> list[Row]:
        """The rows measured, all labelled, in the source's order. ValueError names the columns when one is missing."""
        rows, _ = self._all
        groups = range(len(rows)) if self.group is None else [row.get(self.group) for row in rows]
        return [rows[i] for i in draw(groups, self.limit)]

    @property
    def labels(self) -> list[Any]:
        """The label of every row."""
        return [row[self.label] for row in self.rows]

    @property
    def groups(self) -> list[Any] | None:
        """The patient of every row; None when every image is its own."""
        return None if self.group is None else [row.get(self.group) for row in self.rows]

    @property
    def unlabelled(self) -> int:
        """How many rows of the source were left out because they have no label."""
        return self._all[1]


def some(source: Source) -> list[Row]:
    """The rows of a source. ValueError: there are none."""
    rows: list[Row] = list(source.rows())
    if not rows:
        raise ValueError("the probe's source has no images")
    return rows


def draw(groups: Sequence[Hashable], limit: int | None) -> list[int]:
    """Positions, ascending, of at most `limit` images, spread over as many groups as can be.

    In a fixed random order every group gives one image before any gives a second. From raw Philox numbers, which
    NumPy keeps as they are between versions (Salmon et al. 2011, doi 10.1145/2063384.2063405).
    """
    count = len(groups)
    if limit is None or limit >= count:
        return list(range(count))
    order = np.argsort(np.random.Philox(key=0).random_raw(count), kind="stable").tolist()
    turns, seen = {}, Counter[Hashable]()
    for i in order:
        turns[i] = seen[groups[i]]
        seen[groups[i]] += 1
    return sorted(sorted(order, key=turns.__getitem__)[:limit])


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _square(source: Source, row: Row, side: int, preprocess: Mapping[str, float]) -> np.ndarray:
    """(side, side) or (side, side, 3) uint8. ValueError: which picture cannot be read, and why."""
    try:
        pixels = squared(source.read(row), side, preprocess).mul_(255).round_().to(torch.uint8).numpy()
    except (ValueError, OSError) as error:
        path = str(row.get("path"))
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None
    return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
