"""Thousands of damaged and odd files through `ussl data index`: is each accounted for as it should be?

    python benchmarks/damaged.py --out DIR [--count 10000] [--data PICTURES]

Makes the files under DIR, equal numbers of each kind, indexes them in processes of their own, and prints what became
of every kind, the time, and the peak of memory. Exit code 1: something is unexpected, does not add up, or took more
than a gigabyte. The kinds are the functions in `damages/`. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from damages import dicom, pictures, places, videos  # noqa: F401  (they say which kinds there are)
from damages.kinds import KINDS, Kind, Sample

from ussl.data import fingerprint
from ussl.data import pictures as decoder
from ussl_plugins.sources.phantom import PhantomSource

MOST_MEMORY = 2**30
COMMAND = [sys.executable, "-c", "import sys; from ussl.cli import main; sys.exit(main())"]
SIZE = 96  # pixels of the longest side of a picture
csv.field_size_limit(2**24)


@dataclass(frozen=True)
class File:
    """A file that was made, and what is known of the picture in it."""

    kind: Kind
    number: int
    shape: tuple[int, ...]
    digest: str | None  # of what must be read


@dataclass(frozen=True)
class Run:
    """What a command did. Memory in bytes: `peak` of all its processes at once, `largest` of any one of them.

    The first is looked up often, and what processes share counts once; the second is kept by the system.
    """

    code: int
    said: str
    seconds: float
    peak: int
    largest: int


def base_pictures(data: Path | None, many: int = 12) -> list[np.ndarray]:
    """Grey pictures from 0 to 255: phantoms, and as many of a folder, which is looked through evenly."""
    source = PhantomSource(images=many, size=SIZE, cache=False)
    found = [source.read(row) for row in source.rows()]
    if data is not None:
        files = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".png", ".jpg"))
        if not files:
            raise ValueError(f"{data}: no .png or .jpg in it")
        found += [decoder.read(path) for path in files[:: max(1, len(files) // many)]]
    grey = [decoder.fit(picture, SIZE)[0] for picture in found]
    return [decoder.window(picture if picture.ndim == 2 else picture[..., 1]) for picture in grey]


def make(root: Path, kinds: Sequence[Kind], count: int, base: Sequence[np.ndarray]) -> list[File]:
    """Make `count` files, equal numbers of each kind."""
    return [make_one(root, kinds[i % len(kinds)], i // len(kinds), base) for i in range(count)]


def make_one(root: Path, kind: Kind, number: int, base: Sequence[np.ndarray]) -> File:
    folder = root / kind.source / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(kind.seed(number))
    some = Sample(folder / f"{number:05}{kind.end}", base[draw.integers(len(base))], draw, number)
    data = kind.make(some)
    if data is not None:
        some.path.write_bytes(data)
    return File(kind, number, some.picture.shape, None if some.shown is None else fingerprint.digest(some.shown))


def index(source: str, root: Path, out: Path) -> Run:
    """Run `ussl data index` with two workers."""
    words = ["data", "index", source, str(root / source), "-o", str(out), "--overwrite", "--workers", "2"]
    options = ["--key", str(key(root.parent))] if source == "dicom" else []
    start = time.perf_counter()
    with open(out.with_suffix(".txt"), "w+") as said:
        process = subprocess.Popen([*COMMAND, *words, *options], stdout=said, stderr=said)
        peak, largest, process.returncode = watch(process.pid)
        said.seek(0)
        return Run(process.returncode, said.read(), time.perf_counter() - start, peak, largest)


def key(folder: Path) -> Path:
    """A file for patients to be hashed with, so that none is made in the user's own folder."""
    path = folder / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return path


def watch(pid: int) -> tuple[int, int, int]:
    """Wait for a process. The most memory of it and all below it, the most of one of them, and its exit code."""
    peak = largest = 0
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return peak, largest, os.waitstatus_to_exitcode(status)
        processes = list(family(pid))
        peak = max(peak, sum(memory(process, "smaps_rollup", "Pss") for process in processes))
        largest = max(largest, *(memory(process, "status", "VmHWM") for process in processes))
        time.sleep(0.03)


def family(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from family(int(child))


def memory(pid: int, file: str, name: str) -> int:
    """Bytes that a file of /proc gives by that name; 0 of a process that has ended."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def outcomes(out: Path, root: Path, files: Sequence[File]) -> dict[tuple[str, int], list[str]]:
    """What became of every file, by kind and number: one outcome a row of the manifest or of rejected.csv."""
    known = {(file.kind.name, file.number): file for file in files}
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in (out.name, "rejected.csv"):
        with open(out.with_name(name), newline="", encoding="utf-8") as table:
            for row in csv.DictReader(table):
                key = place(os.path.relpath(out.parent / row["path"], root))
                found[key].append(f"rejected: {row['reason']}" if "reason" in row else indexed(row, known[key]))
    return found


def place(path: str) -> tuple[str, int]:
    """Kind and number of a file by its path below the root."""
    kind, name = path.split("/")[:2]
    return kind, int(name[:5])


def indexed(row: dict[str, str], file: File) -> str:
    """The outcome of a file that a manifest has a row of."""
    height, width = int(row["height"]), int(row["width"])
    words = ["indexed"]
    if (height, width) != file.shape[:2]:
        words.append("turned" if (width, height) == file.shape[:2] else f"{width} x {height}")
    if file.digest not in (None, row["digest"]) and int(row["frame"] or 0) == 0:
        words.append("altered")
    return " ".join([*words, *({"blank"} & set(row["flag"].split(";")))])


def judge(source: str, files: Sequence[File], run: Run, out: Path, root: Path) -> list[str]:
    """Print what became of the files of a source. Returns what is wrong."""
    found = outcomes(out, root / source, files) if run.code == 0 else {}
    wrong = [] if run.code == 0 else [f"{source}: exit code {run.code}: {run.said[-500:]}"]
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        became = found.get((file.kind.name, file.number), ["lost"])
        strange = [outcome for outcome in became if not re.fullmatch(file.kind.expected, outcome)]
        wrong += [f"{source}: {file.kind.name} {file.number:05}: {outcome}" for outcome in strange]
        used = any(outcome.startswith("indexed") for outcome in became)
        kinds[file.kind.name] += Counter(files=1, indexed=used, rejected=not used, unexpected=bool(strange))
    for name, counts in kinds.items():
        print(line(source, name, counts))
    total = sum(kinds.values(), Counter())
    print(line(source, "all", total))
    said = f" {total['files']} listed = {total['indexed']} indexed + {total['rejected']} rejected\n"
    wrong += [] if said in run.said else [f"{source}: does not say: {said}: {run.said[-900:]}"]
    memory = f"{mb(run.peak)} together, {mb(run.largest)} in one process"
    print(f"  {source}: exit code {run.code}, {run.seconds:.0f} s, memory at most {memory}")
    if max(run.peak, run.largest) > MOST_MEMORY:
        wrong.append(f"{source}: takes {mb(max(run.peak, run.largest))} of memory, more than {mb(MOST_MEMORY)}")
    return wrong


def line(source: str, name: str, counts: Counter[str]) -> str:
    """A line of the table."""
    return f"{source:8}{name:44}" + "".join(
        f"{counts[key]:10}" for key in ("files", "indexed", "rejected", "unexpected")
    )


def mb(size: int) -> str:
    return f"{size / 2**20:.0f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet, or is empty")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--data", type=Path, help="a folder of real pictures, to damage some of them as well")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"--out: {given.out} is not empty")
    root = given.out.absolute() / "files"
    kinds = [kind for kind in KINDS if not kind.skip]
    if given.count < len(kinds):
        parser.error(f"--count is {given.count}: there are {len(kinds)} kinds, so write that or more")
    files = make(root, kinds, given.count, base_pictures(given.data))
    for kind in KINDS:
        if kind.skip:
            print(f"not tried: {kind.source}, {kind.name}: {kind.skip}")
    print(f"{'source':8}{'kind':44}{'files':>10}{'indexed':>10}{'rejected':>10}{'unexpected':>10}")
    wrong = []
    for source in dict.fromkeys(file.kind.source for file in files):
        out = given.out.absolute() / source / "corpus.csv"
        out.parent.mkdir()
        of_it = [file for file in files if file.kind.source == source]
        wrong += judge(source, of_it, index(source, root, out), out, root)
    print("\n".join(wrong[:40]) or f"{len(files)} files: all as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
