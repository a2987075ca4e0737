"""Restoring a damaged picture: its pixels where it was masked, and its frequencies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ussl.distributed import gather, world
from ussl.hookspecs import hookimpl
from ussl.parts import Mask, Objective, Student, Target, Tokens
from ussl.precision import precise


class Restoration(Objective):
    """A linear head restores the picture: L1 where it was masked, and a loss of all its frequencies (SimMIM, USFM).

    Head and L1 loss: Xie et al. 2022, arXiv:2111.09886, with the released code's names of weights. Frequencies: Li et
    al. 2023, arXiv:2205.13943 (A2MIM), whose released code takes Jiang et al. 2021, arXiv:2012.12821, eq. 8 and 9. Of
    the picture x and its restoration, x^ where masked and half x^ (without gradient) plus half x elsewhere, D is
    the difference of their spectra; the loss is the mean of w |D|^2, where w = log(1 + |D|^alpha), divided by its
    maximum over the batch, has no gradient. USFM (Jiao et al. 2024, doi 10.1016/j.media.2024.103202) does not say its
    own. Needs an encoder with a token for every patch, and `target: {name: pixels, norm: false}`.

    Args:
        frequency_weight: of the loss of frequencies, beside 1 of pixels; 0 leaves it out.
        alpha: how much more the loss minds frequencies that are far off; 0 minds all alike. 1 unless given.
        spectrum: whose spectra D is of: averaged over the `batch` of all devices, as in the released code, or those
            of each `image`. batch unless given.
    """

    def __init__(
        self,
        student: Student,
        target: Target | None,
        *,
        frequency_weight: float = 0.1,
        alpha: float | None = None,
        spectrum: Literal["batch", "image"] | None = None,
    ) -> None:
        super().__init__()
        _check_options(frequency_weight, alpha, spectrum)
        self.frequency_weight = frequency_weight
        self.alpha = 1.0 if alpha is None else alpha
        self.spectrum = spectrum or "batch"
        self.additive = frequency_weight == 0  # spectra are averaged, or their weights compared, over a batch
        self.patch, self.channels = student.encoder.patch, len(student.encoder.mean)
        values = self.patch**2 * self.channels
        if target is None or target.width != values or getattr(target, "norm", False):
            raise ValueError("usfm restores the picture itself: write target: {name: pixels, norm: false}")
        self.decoder = nn.Sequential(nn.Conv2d(student.width, values, 1), nn.PixelShuffle(self.patch))

    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss", "spatial", "frequency", "chance"}, means over the views that have a target.

        chance is the loss of predicting one colour everywhere, the median of what is asked of this device.
        """
        views = zip(outputs, targets, masks, strict=True)
        results = [self._view(output, target, mask) for output, target, mask in views if target is not None]
        if not results:
            raise ValueError("usfm needs a target for at least one view")
        spatial, frequency, chance = (torch.stack(values).mean() for values in zip(*results, strict=True))
        loss = spatial + self.frequency_weight * frequency
        return {"loss": loss, "spatial": spatial.detach(), "frequency": frequency.detach(), "chance": chance}

    def _view(self, output: Tokens, target: Tokens, mask: Mask | None) -> tuple[Tensor, Tensor, Tensor]:
        asked = _asked(output, target, mask)  # (B * K, N)
        predicted = self.restore(output)
        patches = precise(target.patches).expand(-1, mask.hidden.shape[1], -1, -1).flatten(0, 1)
        picture, masked = self._picture(patches, target.grid), self._pixels(asked, target.grid)
        with torch.no_grad():
            colour = self._median(patches, asked, mask.asked)
            spatial, frequency = self._losses(colour.expand_as(picture), picture, masked)
            chance = spatial + self.frequency_weight * frequency
        return *self._losses(predicted, picture, masked), chance

    def restore(self, tokens: Tokens) -> Tensor:
        """(B * K, C, h, w) the picture, normalised as the encoder normalises it."""
        maps = tokens.patches.flatten(0, 1).transpose(1, 2).unflatten(2, tokens.grid)  # (B * K, D, rows, columns)
        return precise(self.decoder(maps))

    def _losses(self, predicted: Tensor, picture: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Of pixels and of frequencies; pictures (B * K, C, h, w), masked (B * K, 1, h, w)."""
        wrong = ((predicted - picture).abs() * masked).sum() * world()  # every device masks as many pixels
        count = masked.sum().to(wrong.dtype) * self.channels * world()
        spatial = wrong / (count + 1e-5)
        if not self.frequency_weight:
            return spatial, torch.zeros_like(spatial)
        rest = 0.5 * predicted.detach() + 0.5 * picture
        return spatial, self._frequency(torch.where(masked, predicted, rest) - picture)

    def _frequency(self, difference: Tensor) -> Tensor:
        """The loss of frequencies of differences (B * K, C, h, w) between pictures."""
        if self.spectrum == "batch":  # the mean of spectra is the spectrum of the mean
            difference = gather(difference.mean(0, keepdim=True)).mean(0, keepdim=True)
        spectrum = torch.fft.fft2(difference, norm="ortho")
        distance = spectrum.real.square() + spectrum.imag.square()
        with torch.no_grad():
            weight = distance.sqrt().pow(self.alpha).log1p()
            weight = (weight / gather(weight.amax()[None]).amax()).nan_to_num(0).clamp(0, 1)
        return (weight * distance).mean()

    def _picture(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B * K, C, h, w) of patches (B * K, N, p * p * C), each ordered row, column, channel."""
        cells = patches.unflatten(2, (self.patch, self.patch, self.channels)).unflatten(1, grid)
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _pixels(self, asked: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B * K, 1, h, w) bool: the pixels of patches (B * K, N)."""
        cells = asked.unflatten(1, (1, *grid))
        return cells.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)

    def _median(self, patches: Tensor, asked: Tensor, count: int) -> Tensor:
        """(1, C, 1, 1) median of the pixels of `asked` (B * K, N), `count` patches of every picture."""
        where = asked.byte().argsort(dim=-1, stable=True)[:, -count:]  # nonzero would wait for the device
        values = patches.gather(1, where[..., None].expand(-1, -1, patches.shape[-1]))
        return values.reshape(-1, self.channels).median(0).values.view(1, -1, 1, 1)


def _asked(output: Tokens, target: Tokens, mask: Mask | None) -> Tensor:
    """(B * K, N) the patches to be predicted. ValueError: output, target or mask are not what usfm needs."""
    if mask is None:
        raise ValueError("usfm needs a mask for every view with a target; write masking: usfm")
    if output.patches is None or output.where is not None:
        raise ValueError("usfm needs a token for every patch: a masking that drops none, such as usfm, and no pooling")
    if target.patches is None or target.grid != output.grid:
        raise ValueError(
            f"usfm: the target's grid {target.grid} is not the student's {output.grid}; write target: pixels"
        )
    if mask.predict.shape[2] != 1:
        raise ValueError(f"usfm predicts one set of patches a mask; this masking asks {mask.predict.shape[2]}")
    return mask.predict[:, :, 0].flatten(0, 1)


def _check_options(frequency_weight: float, alpha: float | None, spectrum: str | None) -> None:
    if not 0 <= frequency_weight < float("inf"):
        raise ValueError(f"frequency_weight is {frequency_weight}; write a number, 0 or more")
    if spectrum not in (None, "batch", "image"):
        raise ValueError(f"spectrum is {spectrum!r}; write batch or image")
    if alpha is not None and not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha is {alpha}; write a number, 0 or more")
    for name, value in (("alpha", alpha), ("spectrum", spectrum)):
        if value is not None and not frequency_weight:
            raise ValueError(f"{name} has no effect when frequency_weight is 0; leave {name} out")


@hookimpl
def ussl_objectives() -> dict[str, type[Objective]]:
    """Offer the restoration of masked pictures."""
    return {"usfm": Restoration}
