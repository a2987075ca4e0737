"""Random resized crops of one batch: ours against kornia's and against one antialiased interpolation a picture.

    OMP_NUM_THREADS=1 python benchmarks/crop.py

Prints times as ratios to ours, above 1 where ours is faster, from rounds that take turns. kornia's does not antialias.
"""

import argparse
import statistics
import time

import torch
from kornia.augmentation import RandomResizedCrop
from torch.nn.functional import interpolate

from ussl.data.resample import _at_once, random_boxes
from ussl.parts import Batch, Draws
from ussl_plugins.augmentations.crop import Crop

MODES = ("slice", "resample")


def batch_of(count: int, channels: int, device: torch.device) -> Batch:
    """Noise on canvases of 384 x 512."""
    pixels = torch.randint(0, 256, (count, channels, 384, 512), dtype=torch.uint8)
    box = torch.tensor([0, 0, 384, 512]).repeat(count, 1)
    index = torch.arange(count)
    return Batch(pixels, box, torch.ones(count), index, torch.zeros_like(index)).to(device)


def one_interpolation_a_picture(batch: Batch, draws: Draws) -> torch.Tensor:
    boxes = random_boxes(batch.box, draws, (0.2, 1.0), (3 / 4, 4 / 3)).tolist()
    crops = []
    for picture, (y, x, h, w) in zip(batch.pixels, boxes, strict=True):
        crop = picture[None, :, y : y + h, x : x + w].float().div(255)
        crops.append(interpolate(crop, (224, 224), mode="bicubic", antialias=True).clamp(0, 1))
    return torch.cat(crops)


def as_matrices(batch: Batch, draws: Draws) -> torch.Tensor:
    boxes = random_boxes(batch.box, draws, (0.2, 1.0), (3 / 4, 4 / 3))
    return _at_once(batch.pixels, boxes, 224, 224).clamp(0, 255) / 255


def seconds(function, batch: Batch, round_: int) -> float:
    draws = Draws(0, round_, 0, batch.index, batch.turn)
    start = time.perf_counter()
    function(batch, draws)
    if batch.pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", type=torch.device, default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    crop = Crop()
    kornia = {
        mode: RandomResizedCrop((224, 224), (0.2, 1.0), resample="bicubic", cropping_mode=mode) for mode in MODES
    }
    ways = {
        "crop": lambda batch, draws: crop(batch, draws)[0].image,
        "kornia, mode slice (its default)": lambda batch, draws: kornia["slice"](batch.pixels.float() / 255),
        "kornia, mode resample": lambda batch, draws: kornia["resample"](batch.pixels.float() / 255),
        "one interpolation a picture": one_interpolation_a_picture,
        "crop as on an accelerator": as_matrices,
    }
    for channels in (1, 3):
        batch = batch_of(options.batch, channels, options.device)
        rounds = [{name: seconds(way, batch, i) for name, way in ways.items()} for i in range(options.rounds + 1)]
        times = {name: statistics.median(some[name] for some in rounds[1:]) for name in ways}  # the first to warm up
        print(f"{channels} channels on {options.device}: crop {options.batch / times['crop']:,.0f} images/s")
        for name in list(ways)[1:]:
            print(f"  {name}: {times[name] / times['crop']:.2f} times the time of ours")


if __name__ == "__main__":
    main()
