"""What is decided and said before training starts: the micro-batch, the schedule, the time it will take."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ussl.logs import duration

CPU_MICRO_BATCH = 32  # images; a ViT-B pre-training step at 224 px takes about 120 MB an image
HOPELESS = {"cuda": 60 * 86_400, "cpu": 2 * 86_400}  # seconds


def micro_batch(
    local: int, wanted: int | str, contrasts: str | None, anyway: bool, fits: Callable[[int], bool] | None
) -> int:
    """Images that pass through the network together on one device; `local` are due there a step.

    contrasts: why the images of a pass belong together, so that a step is one pass; None = they do not.
    fits: tries a micro-batch on the device; None on CPU, where memory is not probed.
    """
    whole = contrasts is not None and not anyway
    if wanted != "auto":
        size = int(wanted)
        if local % size:
            raise ValueError(
                f"train.micro_batch {size} does not divide the {local} images a device has in a step: "
                f"write one of {', '.join(map(str, _divisors(local)))}"
            )
    elif fits is None:
        size = local if whole else max(d for d in _divisors(local) if d <= CPU_MICRO_BATCH)
    else:
        size = local if whole and fits(local) else _largest(local, fits)
    if size < local and whole:
        raise ValueError(
            f"{contrasts} of one pass, and here {size} of the {local} images a device has in a step pass at once: "
            f"accumulated, they would be so many batches of {size}, which is another method. "
            f"Write a train.batch_size of {size} a device, or --train.accumulate anyway"
        )
    return size


def _largest(local: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `local` that fits, each tried at least twice the one before."""
    best = 0
    for size in _divisors(local):
        if size < 2 * best and size != local:
            continue
        if not fits(size):
            break
        best = size
    if best == 0:
        raise ValueError("one image does not fit in memory: write a smaller --encoder.size or --augmentation.size")
    return best


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def schedule(
    batch_size: int,
    devices: int,
    micro: int,
    peak: float,
    steps: int,
    warmup: int,
    rows: int,
    epoch: int | None = None,
) -> list[str]:
    """The lines that say what will be done; `epoch` images are visited in each, where not all `rows` are, once."""
    seen, several = steps * batch_size, "s" * (devices > 1)
    times = f"{seen / rows:.4g} times each of {rows:,}"
    if epoch is not None:
        times = f"{seen / epoch:.4g} epochs of {epoch:,}, which the sampler takes from {rows:,}"
    return [
        f"batch     {batch_size:,} images = {micro} x {batch_size // devices // micro} accumulated "
        f"x {devices} device{several}",
        f"rate      peak {peak:.3g}, warm-up {warmup:,} of {steps:,} steps",
        f"images    {seen:,} seen in {steps:,} steps = {times}",
    ]


def outlook(images: int, rate: float, device: str) -> str:
    """The line that says how long `images` take at `rate` images a second, and what to do where that is hopeless."""
    seconds = images / rate
    line = f"time      about {duration(seconds)} at {rate:,.3g} images/s, a guess from trial steps"
    if seconds > HOPELESS[device]:
        gpu = "" if device == "cuda" else "a GPU, "
        line += (
            f"\n          This is hopeless on this machine. Try {gpu}fewer steps (--train.steps 1000), "
            "a smaller network (--encoder.size tiny) or smaller images (--augmentation.size 112)."
        )
    return line


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()
