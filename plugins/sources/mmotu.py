"""MMOTU: ovarian tumours in eight classes, with masks; B-mode, and contrast-enhanced in the folder OTU_3d."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, unlike
from ussl.data.pairing import FOLDERS
from ussl.data.tree import below, kind
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

LABELS = (
    "chocolate cyst",
    "serous cystadenoma",
    "teratoma",
    "theca cell tumor",
    "simple cyst",
    "normal ovary",
    "mucinous cystadenoma",
    "high-grade serous",
)
_CONTRAST = re.compile("(otu[ _-]?)?3d")
_KNOWN = re.compile("mmotu.*|otu[ _-]?[23]d")
_TABLE = re.compile("(train|val|test)(_cls)?[.]txt")


@dataclass
class Part:
    """The files of OTU_2d or OTU_3d, by stem in small letters."""

    pictures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    annotations: dict[str, str] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    splits: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)  # as tables write them, and in which table


class MMOTU(DataSet):
    """MMOTU: 1,469 ovarian tumours in B-mode and 170 with contrast, in eight classes, with masks (Zhao et al. 2022).

    Zhao et al., arXiv:2207.06799. mask_lesion is the two-valued annotation (if there is one), mask_class the one
    coloured by class.
    OTU_3d holds no volumes but contrast-enhanced pictures: its rows have the modality ceus, the others b-mode. The
    splits are the published train and val (used as test by its authors); there are no patient ids.
    """

    name = "mmotu"
    expected = "OTU_2d or OTU_3d with the folders images and annotations, and train.txt, val.txt, train_cls.txt, ..."

    def listing(self) -> Iterator[dict[str, Any]]:
        """Rows of all pictures, then of the lists' entries without one. ValueError: no such folders, a broken list."""
        self.aside.clear()
        parts = self._parts()
        known = any(part.tables for part in parts.values()) or any(
            _KNOWN.fullmatch(piece) for place in parts for piece in f"{self.root.name}/{place}".casefold().split("/")
        )
        if not known or not any(part.pictures for part in parts.values()):
            raise unlike(self.root, self.name, self.expected)
        for place, part in parts.items():
            for table in part.tables:
                self._read(table, part)
            yield from self._rows(place, part)
        once(f"{self.root}: MMOTU has no patient ids, so no split of it is sure to keep patients apart")

    def _parts(self) -> dict[str, Part]:
        """The files of each folder that holds `images`; others are counted."""
        parts: dict[str, Part] = defaultdict(Part)
        for path in below(self.root):
            *folders, name = path.split("/")
            low = [folder.casefold() for folder in folders]
            stem = name.casefold().rpartition(".")[0].strip()
            inner = next((i for i, folder in enumerate(low) if folder in FOLDERS | {"image", "images"}), len(low))
            part = parts["/".join(folders[:inner])]
            if extension(path) in PICTURES and inner < len(low):
                self._place(path, stem, low[inner] in FOLDERS, part)
            elif _TABLE.fullmatch(name.casefold()) and inner == len(low):
                part.tables.append(path)
                self.aside["tables"] += 1
            else:
                self.aside["pictures beside images/" if extension(path) in PICTURES else kind(path)] += 1
        return dict(parts)

    def _place(self, path: str, stem: str, annotation: bool, part: Part) -> None:
        if not annotation:
            part.pictures[stem].append(path)
        elif stem.endswith("_binary_binary") or stem in part.annotations:
            self.aside["masks that repeat others"] += 1
        else:
            part.annotations[stem] = path

    def _read(self, table: str, part: Part) -> None:
        """A list of a split's pictures, or of their classes."""
        said = _TABLE.fullmatch(table.casefold().rpartition("/")[2])
        assert said
        for line in self._lines(table):
            stem = line[0].casefold().removesuffix(extension(line[0]))
            if said[2]:
                wrong = len(line) != 2 or line[1] not in map(str, range(len(LABELS)))
                if wrong:
                    raise ValueError(f"{self.root / table}: {' '.join(line)!r} is not <picture> <class 0 to 7>")
                part.labels[stem] = LABELS[int(line[1])]
            if part.splits.setdefault(stem, said[1]) != said[1]:
                raise ValueError(f"{self.root / table}: {line[0]} is in {part.splits[stem]} as well")
            part.names.setdefault(stem, (line[0], table))

    def _lines(self, table: str) -> list[list[str]]:
        try:
            text = (self.root / table).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise ValueError(f"{self.root / table}: not a list in UTF-8 that can be read") from None
        return [line.split() for line in text.splitlines() if line.strip()]

    def _rows(self, place: str, part: Part) -> Iterator[dict[str, Any]]:
        contrast = any(_CONTRAST.fullmatch(folder) for folder in f"{self.root.name}/{place}".casefold().split("/"))
        for stem, paths in part.pictures.items():
            for path in paths:
                known = {"label": part.labels.get(stem), "split": part.splits.get(stem), **self._masks(stem, part)}
                known = {name: value for name, value in known.items() if value is not None}
                modality = "ceus" if contrast else "b-mode"
                yield self.row(self.root / path, organ="ovary", group_kind="image", **known, modality=modality)
        for stem, (name, table) in part.names.items():
            if stem not in part.pictures:
                reason = f"listed in {table}, but there is no such file"
                yield rejected(self.root / place / "images" / name, reason, source=self.name)
        paired = {name for stem in part.pictures for name in (stem, f"{stem}_binary")} & set(part.annotations)
        self.aside["masks"] += len(paired)
        self.aside["masks without a picture"] += len(part.annotations) - len(paired)

    def _masks(self, stem: str, part: Part) -> dict[str, str]:
        coloured = part.annotations.get(stem)
        files = {"mask_lesion": part.annotations.get(f"{stem}_binary", coloured)}
        if coloured and "annotations" in coloured.casefold().split("/"):  # re-hosted masks may have two values
            files["mask_class"] = coloured
        return {column: str(self.root / file) for column, file in files.items() if file}


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer MMOTU."""
    return {"mmotu": MMOTU}
