"""The words of ussl: what travels between parts, and the base class of every kind of part.

Shape key: B images · K masks a view · P sets to predict a mask · N patches of a view · S patches seen · D width ·
C channels · H, W canvas rows, columns · h, w view rows, columns.  Booleans of masks: true means hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ussl.draws import Draws

__all__ = [
    "Augmentation",
    "Batch",
    "Draws",
    "Encoder",
    "Head",
    "Initialization",
    "Mask",
    "Masking",
    "Objective",
    "Optimizer",
    "Part",
    "Probe",
    "Progress",
    "Sampler",
    "Source",
    "Student",
    "Target",
    "Tokens",
    "View",
]


@dataclass(slots=True)
class Batch:
    """Pictures of one micro-batch on one canvas, as the workers leave them."""

    pixels: Tensor  # (B, C, H, W) uint8, C 1 or 3, padded right and below
    box: Tensor  # (B, 4) int64: y, x, height, width of the picture on the canvas
    scale: Tensor  # (B,) float32: canvas pixels per source pixel
    index: Tensor  # (B,) int64 manifest row: with seed, epoch and turn the key of every random number
    turn: Tensor  # (B,) int64: how often this row came before in this epoch
    labels: dict[str, Tensor] = field(default_factory=dict)  # organ, patient, ... as codes

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, copied without waiting where memory is pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by the DataLoader)."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        labels = {name: move(codes) for name, codes in self.labels.items()}
        return Batch(move(self.pixels), move(self.box), move(self.scale), move(self.index), move(self.turn), labels)


@dataclass(slots=True)
class View:
    """One crop of every image of a batch."""

    image: Tensor  # (B, C, h, w) in [0, 1]: what the student is given
    clean: Tensor  # the same crop undegraded: what a target is given (is image when nothing degrades)
    role: str = "global"  # "global" | "local": targets and maskings choose by it


@dataclass(slots=True)
class Mask:
    """Which patches of a view are hidden, and which are to be predicted."""

    hidden: Tensor  # (B, K, N) bool, as many in every row
    predict: Tensor  # (B, K, P, N) bool, equal counts: hidden[:, :, None], a subset, all, or P blocks
    seen: int  # N - hidden a row, a Python int: indices come by stable argsort, never nonzero (a sync)
    asked: int  # patches in a predict set
    how: str = "drop"  # "drop": not encoded · "token": mask token · "fill": pixels already changed
    image: Tensor | None = None  # (B, K, C, h, w) when the masking changes pixels
    bands: Tensor | None = None  # (B, K, h, w) bool, true = frequency removed


@dataclass(slots=True)
class Tokens:
    """What a network says of a view, K times where there are K masks."""

    pooled: Tensor | None  # (B, K, D) what the encoder calls its image feature (cls or mean)
    patches: Tensor | None  # (B, K, S, D); S = N unless dropped
    where: Tensor | None  # (B, K, S) int64 grid positions of patches; None = all N in order
    grid: tuple[int, int]  # rows, columns; N = rows * columns


@dataclass(frozen=True, slots=True)
class Progress:
    """How far training is. `epoch` counts in the schedule's epochs: step / steps * epochs."""

    step: int
    steps: int
    epoch: float
    epochs: float


class Part(nn.Module):
    """A box of a method. Its state changes only in the three calls below, never in forward."""

    can_recompute: ClassVar[bool] = False  # honours `recompute`
    recompute: bool = False  # recompute activations in the backward pass, to save memory

    def before_step(self, at: Progress) -> None:
        """Schedules: temperature, momentum."""

    def after_backward(self, at: Progress) -> None:
        """Cancel or clip own gradients."""

    def after_step(self, at: Progress) -> None:
        """EMA, centre, running statistics. Not called for a refused step."""

    def lineage(self) -> list[dict[str, Any]]:
        """Pretrained weights this part holds: name, source, sha256, licence of each."""
        return []


class Augmentation(Part, ABC):
    """Turns a batch of canvases into views.

    preprocess: what an encoder so trained must be given ever after, {"gaussian_blur": sigma in source pixels} or
    nothing; it is exported with the encoder and done by whatever evaluates it.
    """

    preprocess: Mapping[str, float] = {}

    @abstractmethod
    def forward(self, batch: Batch, draws: Draws) -> list[View]:
        """The views of every image, each (B, C, h, w) in [0, 1]."""


class Encoder(Part, ABC):
    """A network from pixels in [0, 1] to tokens. Normalises and expands grey itself; K = 1 without a mask."""

    width: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accepts: frozenset[str]  # of Mask.how; empty = cannot mask
    preprocess: Mapping[str, float] = {}  # what pictures undergo before they are given, set by the engine

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of that size; ValueError when it does not fit."""

    @abstractmethod
    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of images (B, C, h, w) in [0, 1], C 1 or 3, of the patches that the mask leaves."""

    def initialize(self, formats: Mapping[str, type[Initialization]] | None = None) -> list[str]:
        """Load the weights that `init` names; called once, at a fresh start, never on resume. Lines to print.

        formats: the checkpoint formats on offer; None = those of the installed plugins.
        """
        return []

    def to_timm(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State and config.json with which `timm.create_model("local-dir:...", pretrained=True)` is this encoder."""
        raise ValueError(f"{type(self).__name__} has no timm equivalent, so it cannot be exported to timm")


class Masking(Part, ABC):
    """Chooses which patches the student does not see. None = this view stays whole."""

    @abstractmethod
    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask | None:
        """The mask of a view whose patches form `grid`."""


class Head(Part, ABC):
    """Maps an encoder's tokens for an objective. `__init__(self, encoder: Encoder, *, options)`."""

    width: int

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of width `width`."""


class Student(Part):
    """head(encoder(view)): what an EMA teacher copies and what is exported. Equal-sized views share a pass."""

    def __init__(self, encoder: Encoder, head: Head | None = None, joined: bool = True) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.joined = joined  # equal-sized views share a pass, and so batch-norm statistics

    @property
    def width(self) -> int:
        """Width of the tokens that come out."""
        return self.encoder.width if self.head is None else self.head.width

    def forward(self, views: list[View], masks: list[Mask | None]) -> list[Tokens]:
        """One Tokens a view, in the order of the views."""
        return self.through(views, masks)[1]

    def through(self, views: list[View], masks: list[Mask | None]) -> tuple[list[Tokens], list[Tokens]]:
        """The encoder's tokens of every view, and what the head makes of them (the same where there is no head)."""
        groups: dict[Any, list[int]] = {}
        for i, (view, mask) in enumerate(zip(views, masks, strict=True)):
            alike = (view.image.shape, _form(mask)) if self.joined else i
            groups.setdefault(alike, []).append(i)
        encoded: dict[int, Tokens] = {}
        outputs: dict[int, Tokens] = {}
        for members in groups.values():
            image = torch.cat([views[i].image for i in members]) if len(members) > 1 else views[members[0]].image
            tokens = self.encoder(image, _join([masks[i] for i in members]))
            encoded.update(zip(members, _split(tokens, len(members)), strict=True))
            if self.head is not None:
                tokens = self.head(tokens)
            outputs.update(zip(members, _split(tokens, len(members)), strict=True))
        return [encoded[i] for i in range(len(views))], [outputs[i] for i in range(len(views))]


def _form(mask: Mask | None) -> Any:
    """What two masks must share to pass through a network together."""
    if mask is None:
        return None
    has = (mask.image is None, mask.bands is None)
    return (mask.hidden.shape, mask.predict.shape, mask.seen, mask.asked, mask.how, has)


def _join(masks: list[Mask | None]) -> Mask | None:
    """Masks of one form, one below the other."""
    some = [m for m in masks if m is not None]
    if not some:
        return None
    if len(some) == 1:
        return some[0]

    def cat(name: str) -> Tensor | None:
        return None if getattr(some[0], name) is None else torch.cat([getattr(m, name) for m in some])

    hidden, predict = torch.cat([m.hidden for m in some]), torch.cat([m.predict for m in some])
    return Mask(hidden, predict, some[0].seen, some[0].asked, some[0].how, cat("image"), cat("bands"))


def _split(tokens: Tokens, count: int) -> list[Tokens]:
    """The tokens of `count` views that went through a network together."""

    def chunks(x: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * count if x is None else x.chunk(count)

    parts = zip(chunks(tokens.pooled), chunks(tokens.patches), chunks(tokens.where), strict=True)
    return [Tokens(pooled, patches, where, tokens.grid) for pooled, patches, where in parts]


class Target(Part, ABC):
    """What the student is to predict, from `view.clean`, without gradient. `__init__(self, student, *, options)`."""

    width: int
    teacher: Student | None  # an EMA copy of the student, for `export: teacher`; None unless the class sets it

    def __init__(self) -> None:
        super().__init__()
        self.register_module("teacher", None)

    @abstractmethod
    def forward(self, views: list[View]) -> list[Tokens | None]:
        """One Tokens a view (K = 1), on the student's grid where there are patches; None = no target."""

    def as_encoder(self) -> Encoder | None:
        """The frozen network behind the target, for probes to measure beside the student; None = there is none."""
        return None


class Objective(Part, ABC):
    """The loss, with its decoder or predictor. `__init__(self, student, target, *, options)`."""

    additive: bool = False  # the loss is a mean over images: accumulation is exact
    reads_patches: bool = True  # it has a use for the tokens of patches
    chance: float | None = None  # the loss of a network that has learned nothing, where known; after a first forward

    @abstractmethod
    def forward(
        self, outputs: list[Tokens], targets: list[Tokens | None], masks: list[Mask | None]
    ) -> dict[str, Tensor]:
        """{"loss": ..., scalars to log}, all 0-dim, in fp32, without .item()."""


class Source(ABC):
    """Where pictures come from. A source that reads a user's data takes it as the option `path`."""

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict an image: `path` at least; `organ`, `label`, `patient`, ... where known. ValueError = user's."""

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> np.ndarray:
        """The picture of a row: (H, W) grey or (H, W, 3) RGB, uint8. ValueError names what is wrong with the file."""

    def listing(self) -> Iterator[dict[str, Any]]:
        """What `ussl data index` walks through, opening no picture: rows, and files of several pictures for `expand`.

        One with `rejected`, a reason in words, stands for a file that cannot be used; `rows` leaves it out.
        """
        return self.rows()

    def expand(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of an item of `listing`, whose file it may open; called in several processes at once.

        ValueError names what is wrong with the file. Rows may have `rejected` here as well.
        """
        return [dict(item)]


class Sampler(ABC):
    """The order in which an epoch visits the rows: a function of seed and epoch, so there is no state to save."""

    batch_size: int = 1  # images of an optimiser step over all devices; the engine sets it before it asks for orders

    @abstractmethod
    def order(self, rows: Sequence[Mapping[str, Any]], seed: int, epoch: int) -> np.ndarray:
        """(n,) int64 row numbers of one epoch, the same for the same arguments on every rank.

        n need not be the number of rows, since rows may be left out or repeated, but is the same in every epoch.
        Each `batch_size` entries in a row are a global batch; what is left over at the end is dropped.
        """


class Optimizer(ABC):
    """The update: parameter groups, rule, and per-step rate, decay and clipping from Progress."""

    peak: float = 0.0  # the largest learning rate, known after start()

    @abstractmethod
    def start(self, method: nn.Module, batch_size: int) -> torch.optim.Optimizer:
        """The torch optimizer over `method`'s trainable parameters, for that global batch."""

    @abstractmethod
    def before_step(self, optimizer: torch.optim.Optimizer, at: Progress) -> None:
        """Write this step's rate (and decay) into optimizer.param_groups, on tensors or floats."""

    @abstractmethod
    def warmup_steps(self, steps: int) -> int:
        """Steps of `steps` before the peak is reached, for the plan printed before training."""

    def clip_gradients(self, parameters: list[nn.Parameter], norm: Tensor) -> None:  # noqa: B027
        """Change gradients in place; `norm` is their total norm, 0-dim on the device. Default: leave them."""


class Probe(ABC):
    """Measures, while training, whether the encoder learns. `__init__(self, source: Source, *, options)`.

    The engine calls it on the weights that will be exported, every `every` epochs of the data, and once before
    training on the untrained encoder and on raw pixels, so that every number has its baselines beside it.
    """

    every: float = 1.0

    @abstractmethod
    def run(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Numbers to log; must not change the encoder or any random state."""


class Initialization(ABC):
    """A checkpoint format, recognised by its keys."""

    @abstractmethod
    def recognises(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a loaded checkpoint is of this format."""

    @abstractmethod
    def state(self, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """The encoder's tensors under timm's names."""

    def licence(self, checkpoint: Mapping[str, Any]) -> str | None:
        """Under which licence the publishers of this format released its weights; None = not known."""
        return None

    def statistics(self, checkpoint: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std by channel of the images in [0, 1] that the weights were trained on; None = not known."""
        return None
