"""Views of SimCLR, MoCo-v3 and DINO: what each preset costs beside plain crops and beside a step of the network.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Prints milliseconds a picture (all its views) and ratios, from rounds that take turns. The last lines compare the blur,
a sigma a picture, with torchvision's, which takes one sigma a call.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from timm import create_model
from torchvision.transforms.functional import gaussian_blur

from ussl.parts import Batch, Draws
from ussl.photometric import blur, sometimes
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.augmentations.dino import DINO
from ussl_plugins.augmentations.mocov3 import MoCoV3
from ussl_plugins.augmentations.simclr import SimCLR

TAPS = 17


def batch_of(count: int, channels: int, device: torch.device) -> Batch:
    """Noise on canvases of 384 x 512."""
    pixels = torch.randint(0, 256, (count, channels, 384, 512), dtype=torch.uint8)
    box = torch.tensor([0, 0, 384, 512]).repeat(count, 1)
    index = torch.arange(count)
    return Batch(pixels, box, torch.ones(count), index, torch.zeros_like(index)).to(device)


def seconds(function, batch: Batch, round_: int) -> float:
    draws = Draws(0, round_, 0, batch.index, batch.turn)
    start = time.perf_counter()
    function(batch, draws)
    if batch.pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(ways: dict, batch: Batch, rounds: int) -> dict[str, float]:
    """Seconds of each way, which take turns; the first round warms up."""
    times = [{name: seconds(way, batch, i) for name, way in ways.items()} for i in range(rounds + 1)]
    return {name: statistics.median(some[name] for some in times[1:]) for name in ways}


def two_crops(size: int):
    """Two plain crops a picture."""
    crop = Crop(size=size, scale=(0.2, 1.0))
    return lambda batch, draws: [crop(batch, draws.view(i)) for i in range(2)]


def step_of(size: int, device: torch.device):
    """Forward and backward of ViT-S/16 on two views a picture."""
    network = create_model("vit_small_patch16_224", img_size=size, num_classes=0).to(device)

    def step(batch: Batch, draws: Draws) -> None:
        network(torch.rand(2 * len(batch.pixels), 3, size, size, device=device)).square().mean().backward()

    return step


def blurs(count: int, channels: int, size: int, device: torch.device) -> dict:
    """Every picture blurred, by a sigma of its own."""
    image = torch.rand(count, channels, size, size, device=device)
    every = torch.ones(count, dtype=torch.bool, device=device)
    sigmas = torch.linspace(0.1, 2, count, device=device)
    values = sigmas.tolist()

    def torchvision(*_) -> None:
        torch.cat([gaussian_blur(x[None], [TAPS, TAPS], s) for x, s in zip(image, values, strict=True)])

    return {
        "blur": lambda *_: sometimes(every, partial(blur, taps=TAPS), image, sigmas),
        "blur, the batch in one call of kornia": lambda *_: blur(image, sigmas, TAPS),
        "torchvision, a picture at a time": torchvision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    size, count = options.size, options.batch
    ways = {"two crops": two_crops(size)}
    for name, kind in {"simclr": SimCLR, "mocov3": MoCoV3, "dino, 2 + 4": partial(DINO, local_views=4)}.items():
        small = {"local_size": size // 2} if name.startswith("dino") else {}
        ways |= {f"{name}, {preset}": kind(preset=preset, size=size, **small) for preset in ("official", "us")}
    step = {"step of ViT-S/16, two views": step_of(size, options.device)}
    for channels in (1, 3):
        batch = batch_of(count, channels, options.device)
        times = medians(ways, batch, options.rounds) | medians(step, batch, 1)
        print(f"{'grey' if channels == 1 else 'RGB'}, {size} px, batch {count}, {options.device}:")
        for name, time_ in times.items():
            print(f"  {name}: {1e3 * time_ / count:.2f} ms a picture, {time_ / times['two crops']:.2f} of two crops")
        times = medians(
            blurs(count, channels, size, options.device), batch_of(count, 1, options.device), options.rounds
        )
        for name, time_ in times.items():
            print(f"  {name}: {1e3 * time_ / count:.2f} ms a picture, {time_ / times['blur']:.2f} of ours")


if __name__ == "__main__":
    main()
