"""The frozen EfficientNet-Lite0 teacher: as timm builds it, in channels-last, and with batch norms folded besides.

    OMP_NUM_THREADS=2 python benchmarks/teacher.py

Prints times as ratios to the way `target: lite0` runs it, above 1 where that is faster, from rounds that take turns.
"""

import copy
import statistics
import time

import torch

from ussl.teachers import build, folded


def main(rounds: int = 7, count: int = 32, size: int = 128) -> None:
    """Time a pass of `count` pictures of size x size."""
    network = build("tf_efficientnet_lite0", num_classes=0).eval()
    plain = torch.rand(count, 3, size, size)
    last = plain.contiguous(memory_format=torch.channels_last)
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    ours = folded(copy.deepcopy(network)).to(memory_format=torch.channels_last)
    ways = {"as built": (network, plain), "channels-last": (channels_last, last), "ours": (ours, last)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, (way, images) in ways.items():
                begun = time.perf_counter()
                way.forward_features(images)
                if turn:  # the first warms up
                    times[name].append(time.perf_counter() - begun)
    for name in ways:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
        print(f"{name:14} {ratio:.2f}")


if __name__ == "__main__":
    main()
