"""The breast pictures of Ardakani et al. (QAMEBI), each with a mask and a copy with the lesion drawn in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, between, extension, other, unlike, walk
from ussl.hookspecs import hookimpl
from ussl.parts import Source

_NAME = re.compile(r"(\d+)[\s_-]*(benign|malignant)[\s_-]*(image|lesion|mask)", re.IGNORECASE)


class BUID(DataSet):
    """BUID, breast: benign or malignant by folder, a lesion mask each, grouped by case (Ardakani et al. 2023).

    Ardakani et al., Computers in Biology and Medicine 2023. Of `1 Benign Image.bmp`, `1 Benign Lesion.bmp` and
    `1 Benign Mask.tif` the first is the picture and the last its column `mask_lesion`; the second has the lesion's
    outline drawn into it, so it is never indexed. The same numbers occur in both classes, for other cases.
    """

    name = "buid"
    expected = "{Benign,Malignant}/1 Benign Image.bmp, 1 Benign Mask.tif, ..."

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        files = list(walk(self.root))
        known = {path: found for path in files if (found := _parsed(path, self.root))}
        if not any(kind == "image" for _, _, kind in known.values()):
            raise unlike(self.root, self.name, self.expected)
        masks = {(label, number): path for path, (label, number, kind) in reversed(known.items()) if kind == "mask"}
        pictures = {(label, number) for label, number, kind in known.values() if kind == "image"}
        for path in files:
            label, number, kind = known.get(path, ("", 0, ""))
            if kind == "image":
                row = self.row(path, organ="breast", label=label, patient=f"{label} {number}", group_kind="case")
                yield row | ({"mask_lesion": masks[label, number]} if (label, number) in masks else {})
            elif kind:
                self.aside[_kind(kind, (label, number) in pictures)] += 1
            elif extension(path) in PICTURES:
                yield rejected(path, "not named as `1 Benign Image.bmp` is", source=self.name)
            else:
                self.aside[other(path)] += 1


def _parsed(path: str, root: str | os.PathLike[str]) -> tuple[str, int, str] | None:
    """Label, number and kind (image, lesion, mask) of a file; None = it is named otherwise."""
    name = _NAME.fullmatch(os.path.splitext(os.path.basename(path))[0].strip())
    if name is None or extension(path) not in PICTURES:
        return None
    folders = [folder for folder in between(path, root) if folder in ("benign", "malignant")]
    return (folders[-1] if folders else name[2].lower()), int(name[1]), name[3].lower()


def _kind(kind: str, has_picture: bool) -> str:
    if kind == "lesion":
        return "copies with the outline drawn in"
    return "masks" if has_picture else "masks without a picture"


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer BUID."""
    return {"buid": BUID}
