"""Endoscopic ultrasound of the pancreas, from class folders or from the folds that the authors' code reads."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ussl.data.dataset import DataSet, rejected
from ussl.data.folders import PICTURES, between, extension, other, unlike, walk, word
from ussl.hookspecs import hookimpl
from ussl.notice import once
from ussl.parts import Source

CANCER, OTHER = "pancreatic cancer", "non-pancreatic cancer"
CLASSES = {
    **dict.fromkeys(("pc", "pancreatic_cancer", "pancreas_cancer", "cancer"), CANCER),
    **dict.fromkeys(("npc", "non_pc", "nonpc", "non_pancreatic_cancer", "nonpancreatic_cancer"), OTHER),
    **dict.fromkeys(("non_cancer", "noncancer", "not_pancreatic_cancer", "no_pancreatic_cancer"), OTHER),
}
_UNLABELLED = re.compile("(^|_)(unsup|unsupervised|unlabel|unlabeled|unlabelled)(_|$)")
_FOLD = re.compile(r"(train|val|valid|validation|test)_?fold_?(\d+)|fold_?(\d+)")
_PART = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


class LEPset(DataSet):
    """LEPset, endoscopic ultrasound of the pancreas: cancer or not, 8,000 more without label (Li et al. 2024).

    Li et al. (DSMT-Net), IEEE TMI 43 (2024) 64-75. Labels come from class folders at any level, of the names PC and
    NPC or spelled out; what lies under unsup or unlabelled has none. The authors' code reads a copy of every labelled
    picture in each fold (sup/train_fold1/PC, sup/val_fold1/PC, ...): a picture is indexed once, with the columns
    fold_1, fold_2, ... saying where each fold has it. There are no patient ids, so a split by picture can have a
    patient on both sides.
    """

    name = "lepset"
    expected = "class folders (PC, NPC) or unsup/ and sup/train_fold<k>/<class>/; other names: --classes"

    def __init__(
        self, *, path: Path | None = None, classes: dict[str, str] | None = None, fold: int | None = None
    ) -> None:
        """A tree of class folders.

        Args:
            path: the folder.
            classes: the label of each class folder, where they are named otherwise: {"0": "pancreatic cancer", ...}.
            fold: the fold whose train and val become the split; none when not given.
        """
        super().__init__(path=path)
        self.classes = CLASSES | {word(folder): label for folder, label in (classes or {}).items()}
        self.given, self.fold = tuple(classes or ()), fold

    def listing(self) -> Iterator[dict[str, Any]]:
        self.aside.clear()
        root = self.root
        files = list(walk(root))
        folders = {path: _folders(path, root) for path in files if extension(path) in PICTURES}
        whole = self._whole({folder for names in folders.values() for folder in names})
        once(f"{self.root}: LEPset has no patient ids, so no split of it is sure to keep patients apart")
        folds = self._folds(folders)
        taken: set[tuple[Any, ...]] = set()
        for path in files:
            if path not in folders:
                self.aside[other(path)] += 1
            elif (key := _identity(path, folders[path])) in taken:
                self.aside["copies in other folds"] += 1
            else:
                taken |= {key} if key in folds else set()
                yield self._picture(path, folders[path], whole, folds.get(key, {}))

    def _picture(self, path: str, folders: list[str], whole: str, folds: dict[int, str]) -> dict[str, Any]:
        known: dict[str, Any] = {"organ": "pancreas", "group_kind": "image"}
        label = self._label([whole, *folders])
        if label is None:
            return rejected(path, "lies in no folder of a known class; name it: --classes", source=self.name)
        if label:
            known["label"] = label
        split = folds.get(self.fold) if self.fold is not None else None
        if not folds:
            split = next((_PART[folder] for folder in reversed(folders) if folder in _PART), None)
        if split:
            known["split"] = split
        return self.row(path, **known) | {f"fold_{fold}": part for fold, part in sorted(folds.items())}

    def _label(self, folders: list[str]) -> str | None:
        """The label by the nearest folder that says it; empty where one says that there is none, None = none says."""
        if any(map(_UNLABELLED.search, folders)):
            return ""
        return next((self.classes[folder] for folder in reversed(folders) if folder in self.classes), None)

    def _whole(self, folders: set[str]) -> str:
        """The root's own name where that alone says what the pictures are. ValueError: nothing says it."""
        for name in self.given:
            if word(name) not in folders:
                raise ValueError(f"{self.root}: classes names the folder {name}, but no picture lies in such a folder")
        if any(self._label([folder]) is not None for folder in folders):
            return ""
        if not folders or self._label([word(self.root.name)]) is None:
            raise unlike(self.root, self.name, self.expected)
        return word(self.root.name)

    def _folds(self, folders: dict[str, list[str]]) -> dict[tuple[Any, ...], dict[int, str]]:
        """Which part of each fold has a picture, by what its copies have in common."""
        found: dict[tuple[Any, ...], dict[int, str]] = defaultdict(dict)
        for path, names in folders.items():
            part, fold = _fold(names)
            if fold is not None:
                found[_identity(path, names)][fold] = part
        known = {fold for folds in found.values() for fold in folds}
        if self.fold is not None and self.fold not in known:
            raise ValueError(f"{self.root}: no fold {self.fold}; its folds are: {sorted(known) or 'none'}")
        return dict(found)


def _folders(path: str, root: Path) -> list[str]:
    """The folders from the root down to a picture, as words; an empty one for a picture at the top."""
    return list(map(word, between(path, root))) or [""]


def _fold(folders: list[str]) -> tuple[str, int | None]:
    """Part and number of the fold that a picture lies in: train_fold1, or fold1 and train in any order."""
    at = next((match for folder in folders if (match := _FOLD.fullmatch(folder))), None)
    part = at[1] if at and at[1] else next((folder for folder in folders if folder in _PART), None)
    return (_PART[part], int(at[2] or at[3])) if at and part else ("", None)


def _identity(path: str, folders: list[str]) -> tuple[Any, ...]:
    """What the copies of one picture in several folds have in common."""
    rest = tuple(folder for folder in folders if not _FOLD.fullmatch(folder) and folder not in _PART)
    size = os.path.getsize(path) if os.path.exists(path) else None  # a link may lead nowhere
    return (*rest, os.path.basename(path), size)


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer LEPset."""
    return {"lepset": LEPset}
