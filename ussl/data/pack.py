"""`ussl data pack`: pictures decoded once, into shards that training reads at memory speed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ussl.data import manifest, shards
from ussl.data.packing import GOES_ON, Options, Pack
from ussl.data.shards import COLUMNS, HEAD, rows
from ussl.data.walking import cores
from ussl.data.writing import locked
from ussl.parts import Source
from ussl.plugins import Host
from ussl.recipe import choose

__all__ = ["command", "rows"]


def command(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Pack the pictures of `args.manifest`, or compare those of a pack with their digests. Returns the exit code."""
    workers = cores() if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"--workers {workers}: write 1 or more")
    if args.verify:
        _check_alone(args)
        return _verify(_pack_named(args), workers)
    if args.short_side < 1:
        raise ValueError(
            f"--short-side {args.short_side}: write 1 or more pixels; ultrasound keeps its speckle at 384"
        )
    table = _manifest(args.manifest)
    folder = Path(os.path.abspath(args.out)) if args.out else table.with_suffix(".pack")
    pictures = manifest.read(table)
    if own := sorted(set(COLUMNS) & pictures[0].keys()):
        raise ValueError(f"{table}: its columns {', '.join(own)} are a pack's own; pack the manifest that it is of")
    readers = _readers(pictures, Host(args.plugin))
    options = Options(args.short_side, args.scan, args.grey)
    with locked(folder, args.overwrite):
        _check_options(folder, options)
        pack = Pack(folder, pictures, options)
        pack.check_sources()
        try:
            pack.make(readers, workers)
        except KeyboardInterrupt:
            print(f"\ninterrupted; {GOES_ON}", file=sys.stderr)
            return 130
    return 0


def _verify(folder: Path, workers: int) -> int:
    count, faults = shards.damaged(folder, workers)
    for path, fault in faults:
        print(f"bad       {path}: {fault}")
    found = f"{len(faults):,} are bad: pack again with --overwrite" if faults else "all are as packed"
    print(f"verified  {count:,} pictures of {folder}: {found}")
    return 1 if faults else 0


def _check_alone(args: argparse.Namespace) -> None:
    """ValueError: an option that has no effect beside --verify."""
    given = {name: getattr(args, name) != value for name, value in asdict(Options()).items()}
    given |= {"overwrite": args.overwrite, "plugin": bool(args.plugin)}
    if idle := [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(idle)}: without effect beside --verify, which only reads a pack; leave it out")


def _pack_named(args: argparse.Namespace) -> Path:
    """The pack that --verify is to look at: the folder given, or the one that would be written."""
    for place in (args.out, args.manifest):
        if place and os.path.isfile(os.path.join(place, HEAD)):
            return Path(os.path.abspath(place))
    if args.out or os.path.isdir(args.manifest):
        raise ValueError(f"{args.out or args.manifest}: not a pack: no {HEAD} in it")
    return Path(os.path.abspath(args.manifest)).with_suffix(".pack")


def _manifest(given: str) -> Path:
    """The manifest that is meant: itself, or the one at the top of a folder."""
    path = Path(os.path.abspath(given))
    if not path.is_dir():
        return path
    if (path / HEAD).is_file():
        raise ValueError(f"{path}: a pack already: write the manifest that it was made of, or --verify")
    found = [path / f"manifest{suffix}" for suffix in manifest.SUFFIXES if (path / f"manifest{suffix}").is_file()]
    if len(found) != 1:
        what = f"holds {found[0].name} and {found[1].name}: write which" if found else "no manifest at its top"
        hint = "" if found else f"; write one with ussl data index images {given} -o corpus.parquet"
        raise ValueError(f"{path}: {what}{hint}")
    return found[0]


def _readers(pictures: Sequence[Mapping[str, Any]], host: Host) -> dict[str, Source]:
    """The sources that read the rows, by name. ValueError: there is none of a name."""
    names = sorted({row.get("reader") or "images" for row in pictures})
    return {name: choose(host, "source", "reader", {"name": name}).build() for name in names}


def _check_options(folder: Path, options: Options) -> None:
    """ValueError: the folder holds a pack with other pixels, so that its shards cannot be kept."""
    if not (folder / HEAD).exists():
        return
    before = shards.head(folder).get("options")
    if not isinstance(before, dict) or before.keys() != asdict(options).keys():
        raise ValueError(f"{folder / HEAD}: damaged; pack again with --overwrite")
    if Options(**before) != options:
        raise ValueError(f"{folder}: packed with {Options(**before).words()}: write these, another -o, or --overwrite")
