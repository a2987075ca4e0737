"""Every method against its formulas in plain loops: the same weights, views and masks, ten steps in float64.

    OMP_NUM_THREADS=1 python benchmarks/exactness.py

The loops were written from the papers and are in `tests/reference`; every method is its own parts at their smallest.
Prints a Markdown table of the largest differences: of the loss over all steps, as a share of it; of a gradient over
all steps, as a share of the largest; of weights, teachers and centres after the last step, beside how far these moved.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from reference.compare import table


def main():
    print(table())


if __name__ == "__main__":
    main()
