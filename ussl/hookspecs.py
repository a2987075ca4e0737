"""The kinds of part a plugin can offer: each hook returns classes by name, and its annotation declares the kind."""

from __future__ import annotations

import pluggy

from ussl.parts import (
    Augmentation,
    Encoder,
    Head,
    Initialization,
    Masking,
    Objective,
    Optimizer,
    Probe,
    Sampler,
    Source,
    Target,
)

hookspec = pluggy.HookspecMarker("ussl")
hookimpl = pluggy.HookimplMarker("ussl")


@hookspec
def ussl_sources() -> dict[str, type[Source]]:  # type: ignore[empty-body]
    """Where pictures come from."""


@hookspec
def ussl_samplers() -> dict[str, type[Sampler]]:  # type: ignore[empty-body]
    """Orders in which an epoch visits the images."""


@hookspec
def ussl_augmentations() -> dict[str, type[Augmentation]]:  # type: ignore[empty-body]
    """Ways to turn a batch of pictures into views."""


@hookspec
def ussl_encoders() -> dict[str, type[Encoder]]:  # type: ignore[empty-body]
    """Networks that are pre-trained and exported."""


@hookspec
def ussl_heads() -> dict[str, type[Head]]:  # type: ignore[empty-body]
    """Networks between the encoder and the objective."""


@hookspec
def ussl_maskings() -> dict[str, type[Masking]]:  # type: ignore[empty-body]
    """Ways to choose which patches the student does not see."""


@hookspec
def ussl_targets() -> dict[str, type[Target]]:  # type: ignore[empty-body]
    """What the student is to predict."""


@hookspec
def ussl_objectives() -> dict[str, type[Objective]]:  # type: ignore[empty-body]
    """Losses, with their decoders and predictors."""


@hookspec
def ussl_optimizers() -> dict[str, type[Optimizer]]:  # type: ignore[empty-body]
    """Update rules with their parameter groups and schedules."""


@hookspec
def ussl_probes() -> dict[str, type[Probe]]:  # type: ignore[empty-body]
    """Measurements of the encoder while it trains."""


@hookspec
def ussl_initializations() -> dict[str, type[Initialization]]:  # type: ignore[empty-body]
    """Checkpoint formats an encoder can start from."""
