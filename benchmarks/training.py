"""Training from a pack: how near it comes to the slower of its two parts, the loader alone and the step alone.

    OMP_NUM_THREADS=1 python benchmarks/training.py --data PACK

Builds a run as `ussl fit` does, then lets three ways take turns in one process: the loader's batches alone, steps on
batches that lie in memory, and steps on the loader's batches. Reading processes as `loader.workers` says, one thread a
process. Prints images a second and the ratio of training to min(loader, step): with the small recipe, whose step is
slower, and with a network so small that step and loader are about as fast.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from ussl.launch import Interruption, launch
from ussl.plugins import Host
from ussl.recipe import load
from ussl.train import update
from ussl.training import build

TINY = {"encoder.width": "8", "encoder.depth": "1", "encoder.heads": "1", "objective.depth": "1"} | {
    "objective.width": "8",
    "objective.heads": "1",
    "encoder.patch": "32",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a pack, a manifest or a folder of pictures")
    parser.add_argument("--recipe", default="small/mae")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="of each way in each round, about")
    parser.add_argument("--workers", default="auto")
    return parser.parse_args()


def training_of(options, changes):
    """All that a run trains with, on the data."""
    pairs = {"source": "images", "probes": "null", "loader.workers": options.workers, "train.threads": "1", **changes}
    recipe = load([options.recipe], [*pairs.items()], Host(), data=options.data)
    return build(launch(recipe.train), recipe, None)


def begun(training, start, steps):
    """The batches of as many steps and one more, whose first has come: reading processes start once in a run."""
    batches = training.loader.batches(start, start + steps + 1)
    next(batches)
    return batches


def loader_alone(training, batches, start, steps, out):
    for _ in range(steps):
        next(batches)


def steps_on(training, batches, start, steps, out):
    """`steps` updates, on `batches` of their images."""
    with Interruption() as interruption:
        for step in range(start, start + steps):
            update(training, out, step % training.steps, batches, interruption)


def timed(way, training, batches, *more):
    start = time.perf_counter()
    way(training, batches, *more)
    seconds = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()
    return seconds


def compare(name, training, options, out):
    """Print the rates of the three ways."""
    size, loader = training.recipe.train.batch_size, training.loader
    kept = list(loader.batches(0, 8))
    steps_on(training, itertools.cycle(kept), 0, 8, out)
    second = timed(steps_on, training, itertools.cycle(kept), 0, 8, out) / 8
    steps = max(16, round(options.seconds / second))
    found = {way: [] for way in ("loader", "step", "training")}
    for i in range(options.rounds):
        start = i * steps
        found["loader"].append(timed(loader_alone, training, begun(training, start, steps), start, steps, out))
        found["step"].append(timed(steps_on, training, itertools.cycle(kept), start, steps, out))
        found["training"].append(timed(steps_on, training, begun(training, start, steps), start, steps, out))
    rates = {way: [steps * size / seconds for seconds in times] for way, times in found.items()}
    ratios = [both / min(one, other) for one, other, both in zip(*rates.values(), strict=True)]
    told = ", ".join(f"{way} {statistics.median(some):,.0f}" for way, some in rates.items())
    print(
        f"{name}, {loader.workers} workers, {steps} steps of {size}: {told} images/s; ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


def main():
    options = arguments()
    with tempfile.TemporaryDirectory() as out:
        for name, changes in (options.recipe, {}), ("a tiny network", TINY):
            compare(name, training_of(options, changes), options, Path(out))


if __name__ == "__main__":
    main()
