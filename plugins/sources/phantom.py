"""Simulated B-mode pictures as a data set: patients, organs, labels, and the truth behind every picture."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ussl.hookspecs import hookimpl
from ussl.parts import Source
from ussl.phantom.cache import PictureCache, default_folder
from ussl.phantom.render import ORGANS, VERSION, Phantom, render, settings

KEYS = ("seed", "subject", "view", "organ", "label", "size", "snr")


class PhantomSource(Source):
    """Simulated B-mode of eight organs, normal, benign and malignant; needs no data."""

    def __init__(
        self,
        *,
        images: int = 2000,
        patients: int | None = None,
        size: int = 128,
        snr: float = 60.0,
        organs: list[str] | None = None,
        seed: int = 0,
        cache: bool | str = True,
    ) -> None:
        """Pictures of simulated patients; another seed gives other patients.

        Args:
            images: how many pictures.
            patients: how many patients share them; one for every five pictures when not given.
            size: height and width of a picture in pixels.
            snr: echo of liver at the skin over the receiver's noise, in dB: lower is noisier, first at depth.
            organs: which organs, all eight when not given.
            seed: of the patients and their pictures.
            cache: keep rendered pictures in the user's cache folder (true), in a folder of this name, or not (false).
        """
        self.images, self.size, self.snr, self.seed = images, size, float(snr), seed
        self.patients = max(1, math.ceil(images / 5)) if patients is None else patients
        self.organs = list(ORGANS) if organs is None else list(organs)
        self.cache = cache
        self._check()
        self._caches: dict[str, PictureCache] = {}

    def rows(self) -> Iterator[dict[str, Any]]:
        for index in range(self.images):
            yield self._row(index % self.patients, index // self.patients)

    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        key = _key(row)
        cache = self._cache(key)
        if cache is None:
            return render(**key).image
        name, view = "{organ}-{label}-p{patient:05d}".format(**key), key["view"]
        picture = cache.get(name, view)
        if picture is None:
            picture = render(**key).image
            cache.put(name, view, picture)
        return picture

    def render(self, row: Mapping[str, Any]) -> Phantom:
        """The picture of a row with its organ and lesion masks (H, W) and the size of a pixel in mm."""
        return render(**_key(row))

    def _row(self, patient: int, view: int) -> dict[str, Any]:
        organ = self.organs[patient % len(self.organs)]
        labels = ORGANS[organ].labels
        label = labels[patient // len(self.organs) % len(labels)]
        frame, scanner = settings(self.seed, patient, view, organ, self.size, self.snr)
        return {
            "path": f"phantom/{organ}/s{self.seed}-p{patient:04d}/{view}",
            "source": "phantom",
            "reader": "phantom",
            "organ": organ,
            "label": label,
            "patient": f"phantom-s{self.seed}-p{patient:04d}",
            "probe": ORGANS[organ].probe,
            "depth_mm": round(frame.depth, 1),
            "gain": round(scanner.gain, 2),
            "pixel_mm": round(frame.pixel, 4),
            "seed": self.seed,
            "subject": patient,
            "view": view,
            "size": self.size,
            "snr": self.snr,
        }

    def _cache(self, key: Mapping[str, Any]) -> PictureCache | None:
        """Where pictures of this seed, size and noise are kept; None when they are not."""
        if self.cache is False:
            return None
        part = f"v{VERSION}-seed{key['seed']}-{key['size']}px-{key['snr']:g}dB"
        if part not in self._caches:
            folder = default_folder() if self.cache is True else Path(self.cache).expanduser()
            self._caches[part] = PictureCache(folder / part, key["size"])
        return self._caches[part]

    def _check(self) -> None:
        if self.images < 1:
            raise ValueError(f"images is {self.images}: write at least 1")
        if not 1 <= self.patients <= self.images:
            raise ValueError(f"patients is {self.patients}: write 1 to {self.images}, for `images: {self.images}`")
        if not 32 <= self.size <= 1024:
            raise ValueError(f"size is {self.size} px: write 32 to 1024")
        if not 0 <= self.snr <= 120:
            raise ValueError(f"snr is {self.snr} dB: write 0 (noise) to 120 (no noise)")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: write 0 or a positive number")
        if not self.organs or len(set(self.organs)) < len(self.organs):
            raise ValueError(f"organs is {self.organs}: name each organ once, of {', '.join(ORGANS)}")
        for organ in self.organs:
            _known(organ)


def _known(organ: str) -> None:
    if organ not in ORGANS:
        near = difflib.get_close_matches(organ, ORGANS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(ORGANS)}"
        raise ValueError(f"phantoms have no organ {organ!r}: {hint}")


def _key(row: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a picture, from a row or a line of a manifest."""
    missing = [key for key in KEYS if key not in row]
    if missing:
        raise ValueError(f"the row {row.get('path')!r} is not a phantom's: it lacks {', '.join(missing)}")
    _known(row["organ"])
    if row["label"] not in ORGANS[row["organ"]].labels:
        known = ", ".join(ORGANS[row["organ"]].labels)
        raise ValueError(f"a phantom {row['organ']} cannot be {row['label']!r}: write one of {known}")
    whole = {key: int(row[key]) for key in ("seed", "view", "size")}
    return {
        **whole,
        "patient": int(row["subject"]),
        "snr": float(row["snr"]),
        "organ": row["organ"],
        "label": row["label"],
    }


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer the phantoms."""
    return {"phantom": PhantomSource}
