"""BUSI: breast lesions and normal breasts, with masks beside the pictures or in folders of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, extension, unlike
from ussl.data.pairing import FOLDERS, is_mask, nearest, numbered
from ussl.data.tree import below, kind
from ussl.hookspecs import hookimpl
from ussl.parts import Source

CLASSES = ("benign", "malignant", "normal")
_MASK = re.compile(r"(.+?)[ _.-]*masks?(?:[ _.-]*\(?[0-9]+\)?)?", re.IGNORECASE)
Key = tuple[str | None, str]  # class and name of a picture


class BUSI(DataSet):
    """BUSI: 780 breast pictures, benign, malignant and normal, with lesion masks (Al-Dhabyani et al. 2020).

    Al-Dhabyani et al., Data in Brief 28:104863. Further masks of a picture are mask_lesion_1, mask_lesion_2; those of
    normal pictures are empty. There are no patient ids, many duplicates, some in two classes, and callipers
    (Pawlowska et al. 2023, Data in Brief 48:109247): let `ussl data audit` find them before a split.
    """

    name = "busi"
    expected = "folders benign, malignant and normal with `benign (1).png` and its mask `benign (1)_mask.png`"

    def listing(self) -> Iterator[dict[str, Any]]:
        """Rows of all pictures; one that has no class is rejected. ValueError: no picture has one."""
        self.aside.clear()
        pictures, masks = self._sorted_out()
        if not any(label for label, _ in pictures.values()):
            raise unlike(self.root, self.name, self.expected)
        lesions = self._lesions(pictures, masks)
        if not (any(lesions.values()) or any(name.partition(" ")[0] in CLASSES for _, name in pictures.values())):
            raise unlike(self.root, self.name, self.expected)
        for place, (label, _) in pictures.items():
            path = self.root / place
            if label is None:
                yield rejected(path, f"neither its folders nor its name say {', '.join(CLASSES)}", source=self.name)
            else:
                files = {column: str(self.root / mask) for column, mask in lesions[place].items()}
                yield self.row(path, organ="breast", label=label, group_kind="image", **files)

    def _sorted_out(self) -> tuple[dict[str, Key], dict[str, Key]]:
        """Pictures and masks by their place below the root; other files are counted."""
        pictures: dict[str, Key] = {}
        masks: dict[str, Key] = {}
        for place in below(self.root):
            name = place.rpartition("/")[2].rpartition(".")[0]
            mask = _MASK.fullmatch(name)
            if extension(place) not in PICTURES:
                self.aside[kind(place)] += 1
            elif mask or is_mask(place) or FOLDERS & _words(place.rpartition("/")[0].rpartition("/")[2]):
                masks[place] = self._key(place, mask[1] if mask else name)
            else:
                pictures[place] = self._key(place, name)
        return pictures, masks

    def _key(self, place: str, name: str) -> Key:
        """The class, by the nearest folder or else the name, and the words and numbers of the name."""
        words = re.findall("[a-z]+|[0-9]+", name.casefold())
        folders = [_words(folder) for folder in reversed(place.split("/")[:-1])]
        said = [words & set(CLASSES) for words in (*folders, set(words[:1]), _words(self.root.name))]
        return next((classes.pop() for classes in said if len(classes) == 1), None), " ".join(words)

    def _lesions(self, pictures: dict[str, Key], masks: dict[str, Key]) -> dict[str, dict[str, str]]:
        """The masks of every picture, by column."""
        places: dict[Key, list[str]] = defaultdict(list)
        for place, key in pictures.items():
            places[key].append(place)
        found: dict[str, dict[str, str]] = {place: {} for place in pictures}
        for mask, key in masks.items():
            picture = nearest(mask, places[key]) if key in places else None
            self.aside["masks" if picture else "masks without a picture"] += 1
            if picture:
                found[picture][numbered("mask_lesion", found[picture])] = mask
        return found


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.casefold()))


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer BUSI."""
    return {"busi": BUSI}
