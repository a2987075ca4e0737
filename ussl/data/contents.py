"""What a manifest holds, in numbers: organs by source, patients, sizes, labels, splits, flags."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ussl.data import columns, manifest
from ussl.data.columns import Columns
from ussl.data.sampling import NOT_SAID

SPLITS = ("train", "val", "test")
_TEXT = ("organ", "source", "label", "patient", "group_kind", "split", "flag")
_SIZES = ("width", "height", "channels")


@dataclass(frozen=True)
class Spread:
    """Least, median and most of some numbers."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Organ:
    """One organ: images by source and by label, most first."""

    name: str
    images: int
    sources: dict[str, int]
    labels: dict[str, int]


@dataclass(frozen=True)
class Part:
    """Some of the images: all, those of a source, or those of a split.

    groups: how many patients (cases, videos) there are; of_each: images of each; alone: images without a patient.
    grey, colour: images of one channel and of more, where the manifest says it.
    """

    images: int
    groups: dict[str, int]
    of_each: Spread | None
    alone: int
    width: Spread | None
    height: Spread | None
    grey: int
    colour: int


@dataclass(frozen=True)
class Contents:
    """A manifest in numbers; names that it does not give are "not said". Dictionaries begin with the most."""

    manifest: Path
    organs: list[Organ]
    all: Part
    sources: dict[str, Part]
    splits: dict[str, Part]
    flags: dict[str, int]
    regions: dict[str, int]  # images by column of masks or outlines
    says_organ: bool
    says_label: bool

    @property
    def images(self) -> int:
        """All of them."""
        return self.all.images


def read(path: str | os.PathLike[str]) -> Contents:
    """The contents of a manifest, or of the one in a folder. ValueError: as `manifest.read`."""
    path = columns.located(path)
    table = columns.read(path, (*_TEXT, *_SIZES, *manifest.FILES))
    organ, organs = _named(table, "organ")
    source, sources = _named(table, "source")
    parts = _Parts(table, source)
    split, splits = _named(table, "split")
    by_source = {name: parts.of(source == i) for i, name in enumerate(sources)}
    by_split = {name: parts.of(split == i) for i, name in enumerate(splits)} if "split" in table else {}
    return Contents(
        manifest=path,
        organs=list(_organs(table, organ, organs, source, sources)),
        all=parts.of(np.ones(table.count, dtype=bool)),
        sources={name: by_source[name] for name in _most({name: part.images for name, part in by_source.items()})},
        splits={name: by_split[name] for name in sorted(by_split, key=_place_of_split)},
        flags=_flags(table),
        regions={name: table.filled(name) for name in table if name.startswith(manifest.FILES) and name in table},
        says_organ="organ" in table,
        says_label="label" in table,
    )


def _named(table: Columns, name: str) -> tuple[np.ndarray, list[str]]:
    """(n,) places in the list of values, in which "not said" is the last where a row has none."""
    codes, names = table.codes(name)
    if (codes < 0).any():
        codes, names = np.where(codes < 0, len(names), codes), [*names, NOT_SAID]
    return codes, names


def _most(counts: dict[str, int]) -> dict[str, int]:
    """Most first, equals by name, those not said at the end."""
    line = sorted(counts.items(), key=lambda item: (item[0] == NOT_SAID, -item[1], item[0]))
    return dict(line)


def _place_of_split(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS) + (name == NOT_SAID), name)


def _organs(
    table: Columns, organ: np.ndarray, organs: list[str], source: np.ndarray, sources: list[str]
) -> Iterable[Organ]:
    label, labels = _named(table, "label")
    images = dict(zip(organs, np.bincount(organ, minlength=len(organs)).tolist(), strict=True))
    by_source, by_label = _crossed(organ, source, len(sources)), _crossed(organ, label, len(labels))
    for name in _most(images):
        i = organs.index(name)
        of_sources = {sources[j]: count for j, count in by_source[i].items()}
        of_labels = {labels[j]: count for j, count in by_label[i].items()}
        yield Organ(name, images[name], _most(of_sources), _most(of_labels))


def _crossed(first: np.ndarray, second: np.ndarray, many: int) -> dict[int, dict[int, int]]:
    """How often each value of `second`, of which there are `many`, comes with each of `first`."""
    found: dict[int, dict[int, int]] = {}
    pairs, counts = np.unique(first * many + second, return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found.setdefault(pair // many, {})[pair % many] = count
    return found


def _flags(table: Columns) -> dict[str, int]:
    codes, words = table.codes("flag")
    found: Counter[str] = Counter()
    for text, count in zip(words, np.bincount(codes[codes >= 0], minlength=len(words)).tolist(), strict=True):
        found.update(dict.fromkeys((word.strip() for word in text.split(";") if word.strip()), count))
    return _most(found)


class _Parts:
    """Counts patients and sizes of any images of a table."""

    def __init__(self, table: Columns, source: np.ndarray) -> None:
        patient, patients = table.codes("patient")
        self.kind, kinds = table.codes("group_kind")
        self.kinds = [*kinds, "patient"]  # where the manifest does not say what it is
        self.kind = np.where(self.kind < 0, len(kinds), self.kind)
        alone = (patient < 0) | np.isin(self.kind, [i for i, name in enumerate(self.kinds) if name == "image"])
        self.group = np.where(alone, -1, source * len(patients) + patient)  # equal names in two sources are two
        self.sizes = {name: table.numbers(name) for name in _SIZES}

    def of(self, chosen: np.ndarray) -> Part:
        """The numbers of the images where `chosen` (n,) is true."""
        group = self.group[chosen]
        _, first, each = np.unique(group[group >= 0], return_index=True, return_counts=True)
        kinds = Counter(self.kinds[i] for i in self.kind[chosen][group >= 0][first].tolist())
        channels = self.sizes["channels"][chosen]
        return Part(
            images=int(chosen.sum()),
            groups=_most(kinds),
            of_each=_spread(each),
            alone=int((group < 0).sum()),
            width=_spread(self.sizes["width"][chosen]),
            height=_spread(self.sizes["height"][chosen]),
            grey=int((channels == 1).sum()),
            colour=int((channels > 1).sum()),
        )


def _spread(values: np.ndarray) -> Spread | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return Spread(float(values.min()), float(np.median(values)), float(values.max()))
