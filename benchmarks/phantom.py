"""Phantoms a second on one core, by organ: rendered, and read back from the cache.

    OMP_NUM_THREADS=1 python benchmarks/phantom.py [--size 128]

Prints pictures a second of processor time, and how many times faster the cache is.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

from ussl.phantom.render import ORGANS
from ussl_plugins.sources.phantom import PhantomSource


def rate(work: Callable[[], int], rounds: int) -> float:
    """Pictures a second of processor time, the best round."""
    rates = []
    for _ in range(rounds):
        start = time.process_time()
        count = work()
        rates.append(count / (time.process_time() - start))
    return max(rates)


def measure(organ: str, size: int, count: int, rounds: int, folder: str) -> tuple[float, float]:
    """Rates of rendering and of reading from a full cache."""
    plain = PhantomSource(images=count, size=size, organs=[organ], cache=False)
    kept = PhantomSource(images=count, size=size, organs=[organ], cache=folder)
    rows = list(plain.rows())

    def read(source: PhantomSource) -> int:
        return sum(source.read(row) is not None for row in rows)

    read(kept)
    return rate(lambda: read(plain), rounds), rate(lambda: read(kept), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"{given.size} px, one core: pictures a second")
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for organ in ORGANS:
            rendered, cached = measure(organ, given.size, given.count, given.rounds, folder)
            times.append(1 / rendered)
            print(f"{organ:12} rendered {rendered:6.0f}   cached {cached:7.0f}   x {cached / rendered:.0f}")
    print(f"{'all':12} rendered {len(times) / sum(times):6.0f}")


if __name__ == "__main__":
    main()
