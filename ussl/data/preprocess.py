"""What pictures undergo before an encoder is given them, because it was trained on such pictures alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ussl import weights
from ussl.data.blur import blur_image, gaussian_blur
from ussl.data.resample import resample

KNOWN = ("gaussian_blur", "gaussian_blur_resized")  # sigma in pixels of the picture, and of the resized picture


def check(preprocess: Mapping[str, float], where: str) -> dict[str, float]:
    """The same as a dict. ValueError: it names what is not known here; `where` says who wants it."""
    if unknown := sorted(set(preprocess) - set(KNOWN)):
        raise ValueError(
            f"{where} wants preprocess {', '.join(unknown)}, known here are {', '.join(KNOWN)}: update ussl"
        )
    for name, sigma in preprocess.items():
        if not isinstance(sigma, (int, float)) or not 0 < sigma < 1000:
            raise ValueError(f"{where} wants preprocess {name}: {sigma!r}; write a sigma in pixels, such as 1.1")
    return dict(preprocess)


def prepared(pixels: Tensor, size: int | tuple[int, int], preprocess: Mapping[str, float]) -> Tensor:
    """(C, h, w) float32 in [0, 1]: a whole picture (C, H, W), uint8, as an encoder with that `preprocess` takes it.

    Blurred in its own pixels (gaussian_blur), resized by antialiased bicubic interpolation, blurred in the new ones
    (gaussian_blur_resized). ValueError: `preprocess` asks for something else.
    """
    preprocess = check(preprocess, "an encoder")
    rows, columns = pixels.shape[1:]
    box = torch.tensor([[0, 0, rows, columns]], device=pixels.device)
    pixels = pixels[None]
    if sigma := preprocess.get("gaussian_blur"):
        pixels = gaussian_blur(pixels, box, torch.tensor([sigma], device=pixels.device, dtype=torch.float64), sigma)
    same = (rows, columns) == ((size, size) if isinstance(size, int) else tuple(size))
    image = pixels.to(torch.float32).div_(255) if same else resample(pixels, box, size)
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
    trained = f"encoder.init {init} was trained on pictures with {_told(lost)}"
    if now := _told(preprocess):
        return f"{trained}, and this augmentation does {now}: it goes on with these, and is exported with {now}"
    advice = "it goes on with pictures of another kind, and is exported without; augmentation: deblur keeps the blur"
    return f"{trained}, which this augmentation does not do: {advice}"


def _told(preprocess: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {sigma}" for name, sigma in preprocess.items())
