"""Which picture a mask belongs to, by the folders and the names of both. Paths are below a root, with slashes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

FOLDERS = frozenset({"mask", "masks", "label", "labels", "annotation", "annotations"})  # below these are masks
_PICTURES = frozenset({"image", "images", "img", "imgs", "picture", "pictures"})  # folders that say nothing else
_WORDS = (*sorted(FOLDERS), "segmentation", "seg", "gt")
_BETWEEN = "[ _.-]"
_IMAGE = re.compile(f"(.+?){_BETWEEN}+(?:image|img)")


def is_mask(path: str) -> bool:
    """Whether a file lies below a folder that is named for masks."""
    return any(folder in FOLDERS for folder in path.casefold().split("/")[:-1])


def nearest(path: str, others: Sequence[str]) -> str | None:
    """The one of `others` that has most leading folders in common with `path`; None = several, or there are none."""
    shared = [len(_common(path.split("/")[:-1], other.split("/")[:-1])) for other in others]
    best = [other for other, count in zip(others, shared, strict=True) if count == max(shared)]
    return best[0] if len(best) == 1 else None


def numbered(column: str, taken: Iterable[str]) -> str:
    """`column`, or with _1, _2, ... after it where that is among `taken`."""
    taken, name, number = set(taken), column, 0
    while name in taken:
        number += 1
        name = f"{column}_{number}"
    return name


def pair(pictures: Sequence[str], masks: Sequence[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The masks of every picture that has some, by column, and the masks of which it is unknown to which they belong.

    A mask's picture has its stem, or its stem less a word such as mask (1_mask, mask_1, 1_mask_2); it is looked for
    below the folder that holds the mask's folder, or the first one further up that holds pictures. Of several the one
    in folders of the same names is taken (masks/train/1 for images/train/1), then the least deep; equals are no match.
    The column is mask_<folders below the mask folder>, less those the picture lies in too, else mask_<mask folder>.
    """
    homes = _Homes(pictures, masks)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    lost = []
    for mask in masks:
        picture = homes.picture_of(mask)
        if picture is None:
            lost.append(mask)
        else:
            columns = found[picture]
            columns[numbered(f"mask_{_region(mask, picture, homes.base(mask))}", columns)] = mask
    return dict(found), lost


class _Homes:
    """Pictures by the folder from which masks see them, and by stem."""

    def __init__(self, pictures: Sequence[str], masks: Sequence[str]) -> None:
        self.above = {folder for picture in pictures for folder in _folders_above(picture)}
        self.bases: dict[str, str] = {}
        wanted = {self.base(mask) for mask in masks}
        self.pictures: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.mirrored: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)  # also by their folders
        for picture in pictures:
            for base in wanted.intersection(_folders_above(picture)):
                folders = tuple(folder for folder in _below(picture, base) if folder not in _PICTURES)
                for name in _names(_stem(picture)):
                    self.pictures[base, name].append(picture)
                    self.mirrored[base, name, folders].append(picture)

    def base(self, mask: str) -> str:
        """The folder, "" for the root, below which a mask's picture is looked for."""
        folder = mask.rpartition("/")[0]
        if folder not in self.bases:
            pieces = folder.split("/")
            pieces = pieces[: next(i for i, piece in enumerate(pieces) if piece.casefold() in FOLDERS)]
            while pieces and "/".join(pieces) not in self.above:
                pieces.pop()
            self.bases[folder] = "/".join(pieces)
        return self.bases[folder]

    def picture_of(self, mask: str) -> str | None:
        """The one picture that a mask can belong to; None = there is none, or several."""
        base = self.base(mask)
        folders = [folder for folder in _below(mask, base) if folder not in FOLDERS]
        for name in _mask_names(mask):
            if (base, name) in self.pictures:
                repeated = (self.mirrored.get((base, name, part)) for part in _parts(folders))
                likely = next(filter(None, repeated), self.pictures[base, name])
                ranked = sorted((_distance(mask, picture, base), picture) for picture in likely)
                return None if len(ranked) > 1 and ranked[0][0] == ranked[1][0] else ranked[0][1]
        return None


def _distance(mask: str, picture: str, base: str) -> tuple[int, int, bool]:
    """Smaller for the likelier picture: more folders of the same name, less deep, the same letters in its stem."""
    shared = set(_below(mask, base)) & set(_below(picture, base))
    return -len(shared), picture.count("/"), _stem(mask) != _stem(picture)


def _below(path: str, base: str) -> list[str]:
    """The folders from `base` down to a file, in small letters."""
    return [folder.casefold() for folder in path[len(base) :].split("/")[:-1] if folder]


def _parts(folders: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of folders, the longest first."""
    count = len(folders)
    return [tuple(folders[i : i + size]) for size in range(count, 0, -1) for i in range(count - size + 1)]


def _region(mask: str, picture: str, base: str) -> str:
    """What a mask shows, by its folders: those below the mask folder that are not the picture's own."""
    pieces = [piece for piece in mask[len(base) :].split("/")[:-1] if piece]
    start = next(i for i, piece in enumerate(pieces) if piece.casefold() in FOLDERS)
    own = [piece for piece in pieces[start:] if piece.casefold() not in FOLDERS]
    theirs = [piece for piece in picture[len(base) :].split("/")[:-1] if piece and piece.casefold() not in _PICTURES]
    own = own[: len(own) - len(_common(own[::-1], theirs[::-1]))]
    words = own or [piece for piece in pieces if piece.casefold() in FOLDERS][-1:]
    return re.sub(r"\W+", "_", "_".join(words).lower()).strip("_") or "region"


def _common(one: Sequence[str], other: Sequence[str]) -> Sequence[str]:
    """The leading words that two lists share, in any letter case."""
    count = 0
    while count < min(len(one), len(other)) and one[count].casefold() == other[count].casefold():
        count += 1
    return one[:count]


def _folders_above(path: str) -> list[str]:
    """The folders that hold a file, from the root ("") down."""
    pieces = path.split("/")
    return ["/".join(pieces[:i]) for i in range(len(pieces))]


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _names(stem: str) -> set[str]:
    """The names under which a picture is found: its stem, and without `_image` at its end."""
    short = _IMAGE.fullmatch(stem.casefold())
    return {stem.casefold(), short[1] if short else stem.casefold()}


def _mask_names(mask: str) -> list[str]:
    """The stems that a mask's picture may have, the likeliest first."""
    stem = _stem(mask).casefold()
    folders = mask.casefold().split("/")[:-1]
    found = _affix(folders[-1]).fullmatch(stem)
    return [stem, found["after"] or found["before"]] if found else [stem]


@lru_cache
def _affix(folder: str) -> re.Pattern[str]:
    """A stem with a word for masks, or the name of its folder, before or after it."""
    words = "|".join(map(re.escape, (*_WORDS, folder)))
    return re.compile(
        f"(?:{words}){_BETWEEN}+(?P<after>.+)|(?P<before>.+?){_BETWEEN}+(?:{words})(?:{_BETWEEN}*[0-9]+)?"
    )
