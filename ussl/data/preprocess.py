"""What pictures undergo before an encoder is given them, because it was trained on such pictures alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ussl import weights
from ussl.data.blur import blur_image, gaussian_blur
from ussl.data.clean import Cleaning
from ussl.data.resample import resample

BLURS = ("gaussian_blur", "gaussian_blur_resized")  # sigma in pixels of the picture, and of the resized picture
CLEANINGS = ("scan_mask", "scan_crop", "grey")  # 1: what `loader.scan` and `loader.grey` do to a batch
KNOWN = (*BLURS, *CLEANINGS)
KEEPS = {
    **dict.fromkeys(BLURS, "augmentation: deblur keeps the blur"),
    "scan_mask": "loader: {scan: mask} keeps the mask",
    "scan_crop": "loader: {scan: crop} keeps the crop",
    "grey": "loader: {grey: true} keeps the grey",
}


def check(preprocess: Mapping[str, float], where: str) -> dict[str, float]:
    """The same as a dict. ValueError: it names what is not known here; `where` says who wants it."""
    if unknown := sorted(set(preprocess) - set(KNOWN)):
        raise ValueError(
            f"{where} wants preprocess {', '.join(unknown)}, known here are {', '.join(KNOWN)}: update ussl"
        )
    for name, value in preprocess.items():
        number = isinstance(value, (int, float))
        if name in CLEANINGS and not (number and value == 1):
            raise ValueError(f"{where} wants preprocess {name}: {value!r}; write 1, or leave it out")
        if not number or not 0 < value < 1000:
            raise ValueError(f"{where} wants preprocess {name}: {value!r}; write a sigma in pixels, such as 1.1")
    if {"scan_mask", "scan_crop"} <= set(preprocess):
        raise ValueError(f"{where} wants preprocess scan_mask and scan_crop, which masks as well; write one of them")
    return dict(preprocess)


def prepared(pixels: Tensor, size: int | tuple[int, int], preprocess: Mapping[str, float]) -> Tensor:
    """(C, h, w) float32 in [0, 1]: a whole picture (C, H, W), uint8, as an encoder with that `preprocess` takes it.

    Black outside of its scan (scan_mask), and cut to it (scan_crop), equal channels where it is colourless (grey),
    blurred in its own pixels (gaussian_blur), resized by antialiased bicubic interpolation, blurred in the new ones
    (gaussian_blur_resized). ValueError: `preprocess` asks for something else.
    """
    preprocess = check(preprocess, "an encoder")
    box = torch.tensor([[0, 0, *pixels.shape[1:]]], device=pixels.device)
    pixels, box = Cleaning.undergone(preprocess).clean(pixels[None], box)
    if sigma := preprocess.get("gaussian_blur"):
        pixels = gaussian_blur(pixels, box, torch.tensor([sigma], device=pixels.device, dtype=torch.float64), sigma)
    y, x, rows, columns = box[0].tolist()
    if (rows, columns) == ((size, size) if isinstance(size, int) else tuple(size)):
        image = pixels[..., y : y + rows, x : x + columns].to(torch.float32).div_(255)
    else:
        image = resample(pixels, box, size)
    if sigma := preprocess.get("gaussian_blur_resized"):
        image = blur_image(image, sigma)
    return image[0]


def parting(init: str | Path | None, preprocess: Mapping[str, float]) -> str | None:
    """A sentence where `init` names an encoder trained on pictures that underwent what these do not; else None.

    Args:
        init: a timm name, a file, or an encoder or run folder; None = random weights.
        preprocess: what pictures undergo now.
    """
    if init is None or not (path := Path(init).expanduser()).exists():
        return None
    before = weights.beside(path).get("ussl", {}).get("preprocess", {})
    lost = {name: value for name, value in before.items() if preprocess.get(name) != value}
    if not lost:
        return None
    who = "this augmentation" if {*lost, *preprocess} <= set(BLURS) else "this recipe"
    trained = f"encoder.init {init} was trained on pictures with {_told(lost)}"
    if now := _told(preprocess):
        return f"{trained}, and {who} does {now}: it goes on with these, and is exported with {now}"
    keeps = ", ".join(dict.fromkeys(KEEPS.get(name, f"update ussl for {name}") for name in lost))
    advice = f"it goes on with pictures of another kind, and is exported without; {keeps}"
    return f"{trained}, which {who} does not do: {advice}"


def _told(preprocess: Mapping[str, float]) -> str:
    return ", ".join(name if name in CLEANINGS else f"{name} {value}" for name, value in preprocess.items())
