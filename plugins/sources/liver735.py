"""AUL, "Liver735": liver masses, with contours of the mass, the liver and the scan."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, unlike
from ussl.data.pairing import FOLDERS, nearest
from ussl.data.tree import below, kind
from ussl.hookspecs import hookimpl
from ussl.parts import Source

CLASSES = ("benign", "malignant", "normal")
REGIONS = {"mass": "mask_mass", "liver": "mask_liver", "outline": "mask_sector"}  # columns by folder
SWAPPED = {("malignant", 229), ("malignant", 306)}  # published with the liver's contour in `outline`
_CONTOURS = FOLDERS | {"segmentation", "segmentations"}
Key = tuple[str | None, int | None]  # class and number of a picture


class Liver735(DataSet):
    """AUL: 735 liver pictures of as many patients, benign, malignant and normal, with contours (Xu et al. 2023).

    Xu et al., Briefings in Bioinformatics 2023, doi 10.1093/bib/bbac569; Zenodo 7272660. Masks: mask_mass, mask_liver
    and mask_sector, the scan. Malignant 229 and 306 hold the liver in `outline`, which is put right; 374 has no liver.
    """

    name = "liver735"
    expected = "folders Benign, Malignant and Normal, with image/<number>.jpg and segmentation/<region>/<number>.json"

    def listing(self) -> Iterator[dict[str, Any]]:
        """Rows of all pictures; one without class or number is rejected. ValueError: no picture has both."""
        self.aside.clear()
        pictures, contours = self._sorted_out()
        if not any(None not in key for key in pictures.values()):
            raise unlike(self.root, self.name, self.expected)
        masks = self._masks(pictures, contours)
        for place, (label, number) in pictures.items():
            path = self.root / place
            if label is None or number is None:
                yield rejected(path, f"not <number>.jpg in a folder {', '.join(CLASSES)}", source=self.name)
            else:
                group = {"patient": f"{label}_{number}", "group_kind": "patient"}
                yield self.row(path, organ="liver", label=label, **group, **masks[place])

    def _sorted_out(self) -> tuple[dict[str, Key], dict[str, tuple[str, Key]]]:
        """Pictures by place, and contours by place with their region; other files are counted."""
        pictures: dict[str, Key] = {}
        contours: dict[str, tuple[str, Key]] = {}
        for place in below(self.root):
            folders = place.casefold().split("/")[:-1]
            region = REGIONS.get(folders[-1]) if folders and _CONTOURS.intersection(folders) else None
            if region and extension(place) in PICTURES | {".json"}:
                contours[place] = region, self._key(place)
            elif extension(place) in PICTURES and not _CONTOURS.intersection(folders):
                pictures[place] = self._key(place)
            else:
                self.aside[kind(place)] += 1
        return pictures, contours

    def _key(self, place: str) -> Key:
        """Benign/image/12.jpg and benign/benign_12.jpg are benign, 12."""
        pieces = [self.root.name.casefold(), *place.casefold().rpartition(".")[0].split("/")]
        name = re.fullmatch("(?:([a-z]+)[ _-]*)?([0-9]+)", pieces[-1].strip())
        pieces[-1] = (name[1] or "") if name else ""
        label = next((piece.strip() for piece in reversed(pieces) if piece.strip() in CLASSES), None)
        return label, int(name[2]) if name else None

    def _masks(self, pictures: dict[str, Key], contours: dict[str, tuple[str, Key]]) -> dict[str, dict[str, str]]:
        """The contour files of every picture, by column."""
        places: dict[Key, list[str]] = defaultdict(list)
        for place, key in pictures.items():
            places[key].append(place)
        found: dict[str, dict[str, str]] = {place: {} for place in pictures}
        for contour, (column, key) in contours.items():
            picture = nearest(contour, places[key]) if None not in key and key in places else None
            free = picture is not None and column not in found[picture]
            self.aside["masks" if free else "masks without a picture"] += 1
            if picture is not None and free:
                found[picture][column] = str(self.root / contour)
        for place, files in found.items():
            if pictures[place] in SWAPPED and "mask_sector" in files and "mask_liver" not in files:
                files["mask_liver"] = files.pop("mask_sector")
        return found


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer Liver735."""
    return {"liver735": Liver735}
