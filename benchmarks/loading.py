"""Pictures a second and core, from a file or a pack to a cropped 224 px float tensor: ours against two other ways.

    OMP_NUM_THREADS=1 python benchmarks/loading.py --data PICTURES

Makes grey 800 x 600 PNG files of the pictures (of phantoms without --data) and packs of them in a temporary folder,
then lets the ways take turns in one process: what the code of masked autoencoders does (Pillow, to RGB, bicubic
RandomResizedCrop, ToTensor), torchvision's v2 transforms, our loader and crop from files and from packs. Prints the
median of the rounds, and rates as ratios to the first. Last, a loader over a million rows: time and memory.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import io, transforms
from torchvision.transforms import v2

from ussl.data import manifest, pack
from ussl.data.loader import Loader
from ussl.parts import Draws
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.samplers.natural import Natural
from ussl_plugins.sources.images import Images
from ussl_plugins.sources.pack import Pack
from ussl_plugins.sources.phantom import PhantomSource

BATCH = 64
MILLION = 1_000_000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of pictures or a manifest; phantoms when not given")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--colour", action="store_true", help="pictures of three channels that differ")
    parser.add_argument("--no-million", dest="million", action="store_false", help="leave out the million rows")
    return parser.parse_args()


def originals(data):
    """Grey pictures of at least 256 pixels, without end."""
    source = PhantomSource(images=24, size=600) if data is None else Images(path=data)
    rows = [row for row in source.rows() if (row.get("height") or 256) >= 256]
    while True:
        for row in rows:
            picture = Image.fromarray(source.read(row)).convert("L")
            if min(picture.size) >= 256:
                yield picture.resize((800, 600), Image.Resampling.BICUBIC)


def make(folder, data, count, colour):
    """`count` PNG files and a manifest of them."""
    rows = []
    for i, picture in zip(range(count), originals(data), strict=False):
        path = folder / f"{i}.png"
        if colour:  # channels one pixel apart: nearly the same, as a tinted display has them
            grey = np.asarray(picture)
            picture = Image.fromarray(np.stack([grey, np.roll(grey, 1, 1), np.roll(grey, 2, 1)], 2))
        picture.save(path)
        rows.append({"path": str(path), "height": 600, "width": 800, "channels": 3 if colour else 1})
    manifest.write(rows, folder / "corpus.parquet")
    for side in (256, 384):
        command = ["data", "pack", "corpus.parquet", "-o", f"{side}.pack", "--short-side", str(side), "--workers", "1"]
        subprocess.run([sys.executable, "-m", "ussl.cli", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return [row["path"] for row in rows]


def by_pillow(paths):
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
        ]
    )
    return lambda some: [transform(Image.open(paths[i]).convert("RGB")) for i in some]


def by_torchvision(paths, colour):
    mode = io.ImageReadMode.RGB if colour else io.ImageReadMode.GRAY
    crop = v2.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    return lambda some: [v2.functional.to_dtype(crop(io.read_image(paths[i], mode)), scale=True) for i in some]


def by_us(rows, source):
    """Batches of 64 through the loader, in this process, and the crop."""
    loader = Loader(rows, {"images": Images(), "pack": source}, Natural(), seed=0, batch_size=BATCH, micro_batch=BATCH)
    crop = Crop()

    def run(some):
        for step, batch in loader.batches(some.start // BATCH, some.stop // BATCH):
            crop(batch, Draws(0, 0, step, batch.index, batch.turn))

    return run


def rates(ways, count, rounds):
    """Pictures a second of every way, by round; the ways take turns."""
    found = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, (way, share) in ways.items():
            some = range(0, max(BATCH, count // share // BATCH * BATCH))
            start = time.perf_counter()
            way(some)
            if round_:  # the first to warm up
                found[name].append(len(some) / (time.perf_counter() - start))
    return found


def million():
    """A loader over a million rows in two packs: seconds and memory, rows and loader apart."""
    row = {"path": "", "source": "one", "organ": "liver", "label": "benign", "patient": "", "reader": "pack"}
    row |= {"packed_height": 384, "packed_width": 512, "packed_channels": 1, "packed_scale": 0.6}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shards = ("one.bin", "two.bin")
    rows = [
        row | {"path": f"/data/{i}.png", "patient": str(i // 9), "shard": shards[i % 2], "offset": i * 4096}
        for i in range(MILLION)
    ]
    table = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    loader = Loader(rows, {"pack": Pack()}, Natural(), seed=0, batch_size=256, micro_batch=256)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"a million rows: table {(table - before) / 2**20:.2f} GiB; loader {seconds:.1f} s, peak + "
        f"{(after - table) / 2**20:.2f} GiB"
    )
    return loader


def main():
    options = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make(folder, options.data, options.pictures, options.colour)
        ways = {  # and which share of the pictures a round reads
            "PNG, Pillow, RGB (MAE)": (by_pillow(paths), 8),
            "PNG, torchvision v2": (by_torchvision(paths, options.colour), 8),
            "PNG, ours": (by_us(list(Images(path=folder / "corpus.parquet").rows()), Pack()), 8),
            "pack of 256, ours": (by_us(pack.rows(folder / "256.pack"), Pack()), 1),
            "pack of 384, ours": (by_us(pack.rows(folder / "384.pack"), Pack()), 1),
        }
        found = rates(ways, options.pictures, options.rounds)
    first = found["PNG, Pillow, RGB (MAE)"]
    for name, some in found.items():
        ratio = statistics.median(one / other for one, other in zip(some, first, strict=True))
        print(f"{name:24} {statistics.median(some):8,.0f} images/s  {ratio:6.2f} times the first")
    if options.million:
        million()


if __name__ == "__main__":
    main()
