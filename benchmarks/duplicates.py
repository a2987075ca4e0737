"""Perceptual hashes on real pictures: which copies are found, who else is, and what a search among many costs.

    OMP_NUM_THREADS=1 python benchmarks/duplicates.py --data ../shared/data/ultrasound --counts 10000 100000 1000000

Prints milliseconds a fingerprint; of altered copies the share within each distance of their picture; of pairs of
different patients how many are; then, for hashes with the statistics of the real ones, half of them frames of loops,
the seconds of a search, the exponent of its growth, and of planted copies the share that it finds: `near` among all,
`nearest` of all to the 2,000 planted ones, as a task's test pictures are looked for in a corpus.
"""

import argparse
import io
import math
import os
import resource
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ussl.data import columns, manifest, pictures
from ussl.data.duplicates import DISTANCE, near, nearest
from ussl.data.fingerprint import BITS, fingerprint, perceptual

DISTANCES = (32, 40, 48, DISTANCE, 56, 64)
PLANTED = (20, 30, 40, 46, DISTANCE)  # bits between a hash and its planted copy
LOOP = 30  # frames


def resized(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize([max(8, round(side * factor)) for side in picture.size], Image.Resampling.BICUBIC)


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("L")


def cropped(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = picture.size
    return picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def gamma(picture: Image.Image, power: float) -> Image.Image:
    return picture.point([round(255 * (level / 255) ** power) for level in range(256)])


ALTERED = {
    "half the size": lambda picture: resized(picture, 0.5),
    "1.5 times the size": lambda picture: resized(picture, 1.5),
    "JPEG 60": lambda picture: compressed(picture, 60),
    "cut by 3 % all around": lambda picture: cropped(picture, 0.03, 0.03, 0.97, 0.97),
    "cut by 3 % at two edges": lambda picture: cropped(picture, 0.03, 0.03, 1, 1),
    "gamma 0.7": lambda picture: gamma(picture, 0.7),
    "gamma 1.4": lambda picture: gamma(picture, 1.4),
    "brighter by 30": lambda picture: picture.point([min(255, level + 30) for level in range(256)]),
    "all of these": lambda picture: compressed(gamma(resized(cropped(picture, 0.02, 0.02, 0.99, 0.99), 0.6), 1.2), 70),
}


def words(picture: Image.Image) -> np.ndarray:
    """(BITS / 64,) uint64."""
    return np.frombuffer(bytes.fromhex(perceptual(picture)), dtype=np.uint64)


def shares(bits: np.ndarray) -> str:
    return "  ".join(f"{(bits <= limit).mean():7.3f}" for limit in DISTANCES)


def copies(greys: list[Image.Image], hashes: np.ndarray, every: int) -> Iterator[str]:
    """Of every kind of copy the share within each distance."""
    yield f"{'share within, in bits':24}" + "  ".join(f"{limit:7}" for limit in DISTANCES)
    for name, alter in ALTERED.items():
        pairs = ((words(alter(greys[i])), hashes[i]) for i in range(0, len(greys), every))
        yield f"{name:24}" + shares(np.array([np.bitwise_count(one ^ other).sum() for one, other in pairs]))


def strangers(rows: list[dict], hashes: np.ndarray) -> Iterator[str]:
    """How many pairs of pictures are within each distance: of one source and another patient, and of two sources."""
    sources = np.array([row["source"] for row in rows])
    patients = np.array([row.get("patient") or f"? {i}" for i, row in enumerate(rows)])
    counted: dict[str, np.ndarray] = {}
    for i in range(len(rows) - 1):
        bits = np.bitwise_count(hashes[i] ^ hashes[i + 1 :]).sum(1)
        same = sources[i + 1 :] == sources[i]
        one = same & (patients[i + 1 :] == patients[i])
        for name, chosen in {sources[i]: same & ~one, "two sources": ~same, f"{sources[i]}, one patient": one}.items():
            counted.setdefault(name, np.zeros(BITS + 1, dtype=np.int64))
            counted[name] += np.bincount(bits[chosen], minlength=BITS + 1)
    yield f"{'pairs within, in bits':34}" + "  ".join(f"{limit:7}" for limit in DISTANCES) + "         of"
    for name, found in sorted(counted.items()):
        if found.sum():
            yield f"{name:34}" + "  ".join(f"{found[: d + 1].sum():7,}" for d in DISTANCES) + f"  {found.sum():9,}"


def resembling(hashes: np.ndarray, count: int) -> np.ndarray:
    """(count, BITS / 8) uint8: hashes whose bits are set and go together as in the real ones; half are of loops."""
    rng = np.random.default_rng(0)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    values, vectors = np.linalg.eigh(np.sin(np.pi / 2 * np.corrcoef(bits.T)))  # of normal variables with these signs
    mix = (vectors * np.sqrt(values.clip(0))).T.astype(np.float32)
    rest = np.quantile(rng.standard_normal(100_000), 1 - bits.mean(0)).astype(np.float32)
    alone = count - count // (2 * LOOP) * LOOP
    parts = [np.packbits(_normal(rng, min(50_000, alone - i)) @ mix > rest, axis=1) for i in range(0, alone, 50_000)]
    singles = np.concatenate(parts)
    loops = [
        np.packbits(np.unpackbits(singles[rng.integers(alone)]) ^ (rng.random((LOOP, BITS)) < rng.uniform(0.01, 0.1)))
        for _ in range((count - alone) // LOOP)
    ]
    return np.concatenate([singles, np.array(loops, dtype=np.uint8).reshape(-1, BITS // 8)])


def _normal(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal((count, BITS), dtype=np.float32)


def search(hashes: np.ndarray, count: int, planted: int = 2000) -> tuple[float, str]:
    """Seconds of `near` among `count` hashes, and a line with them and the planted copies that are found."""
    rng = np.random.default_rng(1)
    base = resembling(hashes, count)
    chosen = rng.choice(count, planted)
    apart = rng.choice(PLANTED, planted)
    bits = np.unpackbits(base[chosen], axis=1)
    for row, distance in zip(bits, apart, strict=True):
        row[rng.choice(BITS, distance, replace=False)] ^= 1
    text = [row.tobytes().hex() for row in np.concatenate([base, np.packbits(bits, axis=1)])]
    start = time.perf_counter()
    clusters = near(text)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    there, _ = nearest(text, np.repeat([1, 0], [count, planted]), lambda own, other: own > other)
    across = time.perf_counter() - start
    told = ", ".join(
        f"{(clusters[chosen] == clusters[count:])[apart == distance].mean():.3f} and "
        f"{(there[chosen] >= 0)[apart == distance].mean():.3f} at {distance}"
        for distance in PLANTED
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return seconds, (
        f"{count:9,} hashes: near {seconds:6.1f} s, nearest {across:6.1f} s, peak {memory:.1f} GB, "
        f"{clusters.max() + 1:,} clusters, the largest of {np.bincount(clusters).max():,}; found by each: {told}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a manifest, or the folder of one")
    parser.add_argument("--every", type=int, default=4, help="copies are made of every so many pictures")
    parser.add_argument("--counts", type=int, nargs="*", default=[10_000, 100_000])
    options = parser.parse_args()
    rows = [row for row in manifest.read(columns.located(os.path.abspath(options.data))) if not row.get("reader")]
    found = [pictures.read(row["path"]) for row in rows]
    large = [picture for picture in found if max(picture.shape) >= 512][:200]
    start = time.perf_counter()
    for picture in large:
        fingerprint(picture)
    spent = 1e3 * (time.perf_counter() - start) / max(1, len(large))
    print(f"{len(found):,} pictures; a fingerprint takes {spent:.1f} ms at 512 px")
    greys = [Image.fromarray(picture).convert("L") for picture in found]
    hashes = np.array([words(grey) for grey in greys])
    for line in [*copies(greys, hashes, options.every), *strangers(rows, hashes)]:
        print(line)
    before: tuple[int, float] | None = None
    for count in options.counts:
        seconds, line = search(hashes, count)
        print(line, flush=True)
        if before:
            growth = math.log(seconds / before[1]) / math.log(count / before[0])
            print(f"          {seconds / before[1]:.1f} times the seconds: grows as n^{growth:.2f}")
        before = count, seconds


if __name__ == "__main__":
    main()
