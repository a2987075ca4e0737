"""From tissue to echoes to grey: beams, pulse, attenuation, noise, time-gain compensation, log compression.

Complex baseband throughout: the field of scatterers is filtered by the beam's and the pulse's envelope at the centre
frequency, and the modulus is the detected envelope. Dense scatterers make the field circular Gaussian, so that the
envelope of an even tissue is Rayleigh (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy import ndimage

from ussl.phantom.scan import Frame
from ussl.phantom.scene import DECIBEL, LIVER, Scene

SOUND = 1.54  # mm / us


@dataclass(frozen=True)
class Scanner:
    """The settings of a scanner for one picture."""

    frequency: float  # MHz
    cycles: float = 2.5  # of the pulse, full width at half maximum
    f_number: float = 4.0  # focal depth over aperture
    focus: float = 30.0  # mm
    snr: float = 60.0  # dB, the echo of liver at the skin over the receiver's noise
    gain: float = 0.0  # dB
    tilt: tuple[float, float, float] = (0.0, 0.0, 0.0)  # dB by which the time-gain curve errs near, midway, far
    dynamic_range: float = 60.0  # dB from black to white
    gamma: float = 1.0  # of the grey map
    sidelobe: float = -38.0  # dB, the wide skirt of the beam

    @property
    def wavelength(self) -> float:
        """Millimetres."""
        return SOUND / self.frequency

    @property
    def pulse(self) -> float:
        """Deviation in mm of the pulse's echo along the beam, a Gaussian."""
        return self.cycles * self.wavelength / 2 / 2.355

    def beam(self, depths: np.ndarray) -> np.ndarray:
        """Deviation in mm of the beam's echo across, at depths (A,): a Gaussian beam with its waist at the focus."""
        waist = self.f_number * self.wavelength / 2.355
        reach = 4 * np.pi * waist**2 / self.wavelength * 1.2
        return waist * np.sqrt(1 + ((depths - self.focus) / reach) ** 2)

    def compensation(self, depths: np.ndarray) -> np.ndarray:
        """The time-gain curve (A,) in dB: even for liver, but for this scanner's errors."""
        even = 2 * LIVER.attenuation * self.frequency * depths / 10
        return even + np.interp(depths / depths[-1], [0, 0.5, 1], self.tilt)


def loss(scene: Scene, frequency: float) -> np.ndarray:
    """Attenuation (A, L) in dB to every sample and back, a beam's width seeing the mean of its neighbours."""
    seen = ndimage.uniform_filter1d(scene.attenuation, 3, axis=1)
    return np.cumsum(seen, axis=0, dtype=np.float32) * np.float32(2 * frequency * scene.step / 10) + scene.cover


def echoes(scene: Scene, frame: Frame, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Complex echoes (A, L) of a scene as received, noise included, before time-gain compensation."""
    lost = loss(scene, scanner.frequency)
    scatter, receiver = _circular(rng, scene.echo.shape), _circular(rng, scene.echo.shape)
    field = scatter * np.exp(DECIBEL * (scene.echo - lost))
    field += (0.85 + 0.55 * scatter) * scene.mirror * np.exp(-DECIBEL * lost)
    # reverberation travels outside the shadow, but no further than sound in soft tissue would
    soft = 2 * LIVER.attenuation * scanner.frequency * scene.depth / 10
    field += receiver[::-1] * scene.haze * np.exp(-DECIBEL * soft)
    received = across(field, frame, scanner) + receiver * np.float32(10 ** (-scanner.snr / 20))
    return along(received, scanner.pulse / frame.step)


def across(field: np.ndarray, frame: Frame, scanner: Scanner) -> np.ndarray:
    """Blur (A, L) over beams by the beam's echo at each depth, keeping the mean power of speckle."""
    width = scanner.beam(frame.depths) / frame.pitch
    turns = 2 * np.pi * scipy.fft.fftfreq(frame.lines)
    squared = -0.5 * (width[:, None] * turns).astype(np.float32) ** 2
    skirt = np.float32(10 ** (scanner.sidelobe / 20))
    transfer = np.exp(squared) + 6 * skirt * np.exp(36 * squared)
    transfer /= np.sqrt(np.mean(transfer**2, axis=1, keepdims=True))
    return scipy.fft.ifft(scipy.fft.fft(field, axis=1) * transfer, axis=1)


def along(field: np.ndarray, width: float) -> np.ndarray:
    """Blur (A, L) along the beams by a pulse of `width` samples, keeping the mean power of speckle."""
    reach = max(1, int(np.ceil(3 * width)))
    pulse = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-3)) ** 2)
    pulse /= np.sqrt(np.sum(pulse**2))
    parts = np.ascontiguousarray(field).view(np.float32)
    return ndimage.correlate1d(parts, pulse, axis=0, mode="constant").view(np.complex64)


def compress(received: np.ndarray, frame: Frame, scanner: Scanner) -> np.ndarray:
    """Grey in [0, 1] (A, L): time-gain compensation, envelope, logarithm, dynamic range, grey map."""
    level = 20 * np.log10(np.abs(received) + np.float32(1e-9))
    level += scanner.compensation(frame.depths)[:, None].astype(np.float32) + np.float32(scanner.gain)
    grey = np.clip(level / np.float32(scanner.dynamic_range) + np.float32(0.42), 0, 1)
    return grey ** np.float32(scanner.gamma)


def _circular(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Complex Gaussian numbers of unit mean power."""
    parts = rng.standard_normal((shape[0], 2 * shape[1]), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)
