"""DICOM pictures: trees of files, a DICOMDIR, single files; cine loops frame by frame; patients by keyed hashes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.data import dicom, dicom_files, folders, pictures
from ussl.data.dataset import DataSet, rejected
from ussl.data.dicom_decode import check_syntax, decode
from ussl.data.dicom_display import display
from ussl.data.dicom_elements import Unusable, plain_words, text
from ussl.data.dicom_frames import frame_bytes, frames_there
from ussl.data.dicom_identity import MODALITIES, NAMING, TRANSDUCERS, load_key, model_name, pseudonym, term
from ussl.data.dicom_regions import Box, Scan, scan
from ussl.hookspecs import hookimpl
from ussl.parts import Source

_NAMES = frozenset({".dcm", ".dicom", ".ima"})  # a file so named that is not DICOM is damaged
_CROP = ("crop_y", "crop_x", "crop_height", "crop_width")


class Dicom(DataSet):
    """DICOM files (a tree, a DICOMDIR or one file) as frames cropped to the scan, with hashed patients.

    Files are recognised by their content. Of the header a row holds keyed hashes, the size of a pixel, and terms
    that DICOM defines; nothing that names a person, a place or a day. `patient` is the Patient ID with its issuer,
    else the study (`group_kind` says which).
    """

    name = "dicom"
    expected = "DICOM files, or a DICOMDIR"

    def __init__(
        self,
        *,
        path: Path | None = None,
        stride: int = 1,
        key: Path | None = None,
        crop: bool = True,
        organ: str | None = None,
        label: str | None = None,
    ) -> None:
        """The frames of DICOM files.

        Args:
            path: a folder, a DICOMDIR, or a DICOM file.
            stride: every how manyeth frame of a cine loop is taken.
            key: file with the secret that hashes patients; USSL_KEY_FILE names it, or one is made in ~/.config/ussl.
            crop: cut to the 2-D regions that the scanner wrote down, where it did.
            organ: what all pictures show.
            label: what all pictures are labelled.
        """
        super().__init__(path=path)
        if stride < 1:
            raise ValueError(f"stride is {stride}: write 1 for every frame, 2 for every second one, ...")
        self.stride, self.key, self.crop, self.organ, self.label = stride, key, crop, organ, label
        self._secret: bytes | None = None

    @property
    def root(self) -> Path:
        """The folder or file it is in. ValueError: none was named, or it is not there."""
        if self.path is None:
            raise ValueError("where is the DICOM? Write a folder, a DICOMDIR or a file: --data PATH")
        path = Path(os.path.abspath(self.path))
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        return path

    def listing(self) -> Iterator[dict[str, Any]]:
        """One item a file."""
        self.aside.clear()
        self._hash("check", "")  # a wrong key is refused before the first file is read
        root = self.root
        if root.is_dir():
            yield from self._tree(root)
        elif dicom_files.kind(root) is None:
            raise ValueError(f"{root}: neither a folder nor a DICOM file; other pictures are read by `images`")
        elif dicom_files.kind(root) == "directory":
            yield from self._directory(root, set())
        else:
            yield self.row(root, reader=self.name)

    def expand(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """One row a frame, and one that is rejected for those that the file lacks."""
        path = item["path"]
        with plain_words(path):
            header = dicom.header(path)
            check_syntax(header)
            there = frames_there(header)
            if not there:
                raise Unusable(f"cut short: none of its {header.frames} frames is whole")
            known = {**item, **self._known(header)}
        rows = [{**known, "frame": frame} for frame in range(0, there, self.stride)]
        if there < header.frames:
            reason = f"cut short: of its {header.frames} frames only the first {there} are whole"
            rows.append(rejected(path, reason, frame=there))
        return rows

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """A frame, cut to the row's crop, else to the file's regions. ValueError quotes nothing of the file."""
        path, frame = row["path"], int(row.get("frame") or 0)
        with plain_words(path):
            header = dicom.header(path)
            check_syntax(header)
            y, x, height, width = self._box(row, header)
            samples, photometric = decode(header, frame_bytes(header, frame))
            return display(header, samples[y : y + height, x : x + width], photometric)

    def _box(self, row: Mapping[str, Any], header: dicom.Header) -> Box:
        if any(row.get(name) is None for name in _CROP):
            return scan(header).box if self.crop else (0, 0, header.rows, header.columns)
        y, x, height, width = (int(row[name]) for name in _CROP)
        if min(y, x) < 0 or min(height, width) < 1 or y + height > header.rows or x + width > header.columns:
            raise Unusable("its crop in the manifest lies outside of the picture; index the file again")
        return y, x, height, width

    def _tree(self, root: Path) -> Iterator[dict[str, Any]]:
        directories, met = [], set()
        for path in folders.walk(root):
            try:
                kind = "special" if pictures.is_special(path) else dicom_files.kind(path)
            except OSError as error:
                yield rejected(path, (error.strerror or "unreadable").lower())
                continue
            if kind == "picture":
                met.add(os.path.realpath(path))
                yield self.row(path, reader=self.name)
            elif kind == "directory":
                directories.append(path)
            elif kind == "special":
                yield rejected(path, pictures.SPECIAL)
            elif folders.extension(path) in _NAMES:
                empty = not os.path.getsize(path)
                yield rejected(path, "the file is empty" if empty else "named as DICOM, and its content is not")
            else:
                self.aside[folders.other(path)] += 1
        for path in directories:  # last, for the files that they list and that are not there
            yield from self._directory(Path(path), met)

    def _directory(self, path: Path, met: set[str]) -> Iterator[dict[str, Any]]:
        """Items of the pictures that a DICOMDIR lists, but for those `met` before."""
        try:
            listed = dicom_files.directory(path)
        except ValueError as error:
            yield rejected(path, str(error).removeprefix(f"{path}: "))
            return
        if not listed:
            yield rejected(path, "damaged: a DICOMDIR that lists no files")
            return
        self.aside["DICOMDIR"] += 1
        for kind, pieces in listed:
            if kind != "IMAGE":
                self.aside["other objects of a DICOMDIR"] += 1
                continue
            place = path.parent.joinpath(*pieces)
            if not pieces or any(piece in ("", ".", "..") or "/" in piece for piece in pieces):
                yield rejected(path, "lists a file outside of its folder")
                continue
            found = folders.inside(path.parent, "/".join(pieces))
            real = os.path.realpath(found or place)
            if real in met:
                continue
            met.add(real)
            if found is None or not found.is_file():
                yield rejected(place, "listed in the DICOMDIR, and not there")
            else:
                yield self.row(found, reader=self.name)

    def _known(self, header: dicom.Header) -> dict[str, Any]:
        """The columns that all frames of a file share."""
        found = scan(header)
        whole = Scan((0, 0, header.rows, header.columns), found.pixel_mm, found.flag)
        used = found if self.crop else whole
        columns = {
            "organ": self.organ,
            "label": self.label,
            **self._groups(header),
            **dict(zip(_CROP, used.box, strict=True)),
            "pixel_mm": used.pixel_mm,
            "flag": used.flag,
            "modality": term(text(header.tags, "Modality"), MODALITIES),
            "transducer": term(text(header.tags, "TransducerType"), TRANSDUCERS),
            "manufacturer_model": model_name(
                text(header.tags, "ManufacturerModelName"), [text(header.tags, name) for name in NAMING]
            ),
        }
        return {name: value for name, value in columns.items() if value is not None}

    def _groups(self, header: dicom.Header) -> dict[str, str]:
        """Whose picture it is, of which study, series and loop, as hashes."""
        tags = header.tags
        study, series = text(tags, "StudyInstanceUID"), text(tags, "SeriesInstanceUID")
        identity, issuer = text(tags, "PatientID"), text(tags, "IssuerOfPatientID")
        groups = {}
        if study:
            groups["study"] = self._hash("study", study)
        if series:
            groups["series"] = self._hash("series", series)
        if header.frames > 1:
            instance = text(tags, "SOPInstanceUID") or f"{os.path.basename(header.path)} {header.size}"
            groups["video"] = self._hash("instance", instance)
        if identity:
            return {"patient": self._hash("patient", issuer, identity), "group_kind": "patient", **groups}
        if study:
            return {"patient": groups["study"], "group_kind": "case", **groups}
        if header.frames > 1:
            return {"patient": groups["video"], "group_kind": "video", **groups}
        return {"group_kind": "image", **groups}

    def _hash(self, kind: str, *parts: str) -> str:
        if self._secret is None:
            self._secret = load_key(self.key)
        return pseudonym(self._secret, kind, *parts)


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer DICOM."""
    return {"dicom": Dicom}
