"""`ussl data index`: every picture of folders as a row of a manifest, and every other file accounted for."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import NoneType
from typing import get_args

import numpy as np
from tqdm import tqdm

from ussl.data import fingerprint, manifest
from ussl.data.accounts import Account
from ussl.data.journal import Journal
from ussl.data.listing import GOES_ON, Root, list_all
from ussl.data.measure import Item, Measure, Measured, has_rejections, plain, rejection, stamp
from ussl.data.merging import Before
from ussl.data.walking import Lost, cores, each
from ussl.errors import RunFailed
from ussl.layers import Layer, arguments, overrides
from ussl.options import Option, options
from ussl.parts import Source
from ussl.plugins import Host
from ussl.recipe import choose


def command(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Index `args.roots` with the source `args.source`, whose options are in `rest`. Returns the exit code."""
    out = _output(args)
    workers = cores() if args.workers is None else args.workers
    if workers < 1:
        raise ValueError(f"workers is {workers}: write 1 or more")
    host = Host(args.plugin)
    given, words = _options(rest, options(host.get("source", args.source)))
    roots = _roots(host, args.source, [*args.roots, *words], given, out)
    before = Before.read(out) if args.add and out.exists() else Before()
    with closing(Journal(out, _belongs(host, args.source, roots))) as journal:
        try:
            found = list_all(roots, args.source, before)
            measure = Measure([root.source for root in roots], args.source, _Readers(host, roots))
            results = _measure(found.items, roots, measure, journal, workers)
            found.items.clear()  # a million of them are memory that the manifest needs now
            account = Account(results, found.twice, found.aside)
            account.write(out, before, [root.path for root in roots if root.path])
        except KeyboardInterrupt:
            print(f"interrupted; {GOES_ON}", file=sys.stderr)
            return 130
        except OSError as error:
            name = error.filename or journal.path
            raise RunFailed(f"{name}: {(error.strerror or str(error)).lower()}; {GOES_ON}") from error
        journal.remove()
    print("\n".join(account.lines(args.out)))
    return 0


def _output(args: argparse.Namespace) -> Path:
    """The manifest to write. ValueError: it cannot be one, or is there already."""
    if not args.out.strip():
        raise ValueError("-o: an empty path; write the manifest's name, such as corpus.parquet")
    out = Path(os.path.abspath(os.path.expanduser(args.out)))
    if out.suffix.lower() not in manifest.SUFFIXES:
        raise ValueError(f"{args.out}: write a manifest's name with .csv or .parquet at its end")
    if out.name == "rejected.csv":
        raise ValueError(
            f"{args.out}: this is the table of files that cannot be used; write another name for the rest"
        )
    if args.add and args.overwrite:
        raise ValueError("--add keeps what the manifest holds and --overwrite replaces it: write one of them")
    if out.exists() and not (args.add or args.overwrite):
        raise ValueError(f"{args.out}: is there already; write --add to keep its other rows, or --overwrite")
    parent = next(folder for folder in out.parents if folder.exists())
    if out.is_dir() or not parent.is_dir():
        raise ValueError(f"{out if out.is_dir() else parent}: {'' if out.is_dir() else 'not '}a folder")
    return out


def _options(rest: Sequence[str], known: Mapping[str, Option]) -> tuple[Layer, list[str]]:
    """The source's options, and the words between them that belong to none: further roots."""
    waiting, named, words = list(rest), [], []
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        named.append(word)
        if "=" not in word and waiting:
            named.append(waiting.pop(0))
    pairs = arguments(named)
    texts = {key: text for key, text in pairs if key in known and _is_text(known[key].hint, text)}
    given = overrides([(key, text) for key, text in pairs if key not in texts], os.getcwd()) | texts
    for key in ("path", "name", "class_path", "init_args"):
        if key in given:
            raise ValueError(f"--{key}: not an option here; SOURCE and ROOT say it")
    return given, words


def _is_text(hint: object, text: str) -> bool:
    """Whether an option takes text, and `text` is to be taken as it stands: {organ}/{label} is no mapping there."""
    return (
        {*(get_args(hint) or [hint])} <= {str, NoneType} and text[:1] not in ("'", '"') and text not in ("null", "~")
    )


def _roots(host: Host, source: str, paths: Sequence[str], given: Layer, out: Path) -> list[Root]:
    """A source for every root. ValueError: a root that is not there, or where none is wanted."""
    takes_path = "path" in options(host.get("source", source))
    if takes_path and not paths:
        raise ValueError(f"where are the pictures? Write ussl data index {source} ROOT -o {out.name}")
    if paths and not takes_path:
        raise ValueError(f"{paths[0]}: {source} makes its own pictures and takes no ROOT; leave it out")
    found = []
    for place in [_place(path, bool(given)) for path in paths] if takes_path else [None]:
        where = {} if place is None else {"path": place}
        choice = choose(host, "source", "source", {"name": source, **given, **where})
        found.append(Root(place, choice.build(), choice.written))
    return found


def _place(path: str, has_options: bool) -> str:
    place = os.path.abspath(os.path.expanduser(path))
    if not path.strip():
        raise ValueError("an empty path among the roots; write a folder or file")
    if not os.path.exists(place):
        hint = "; options of the source come after the roots" if has_options else ""
        raise ValueError(f"{place}: no such file or folder{hint}")
    return place


def _belongs(host: Host, source: str, roots: Sequence[Root]) -> Layer:
    """What the measurements depend on, beside the files."""
    own = Path(inspect.getfile(host.get("source", source)))
    code = hashlib.sha256()
    for file in [own, *sorted(Path(fingerprint.__file__).parent.glob("*.py"))]:  # decoders, fingerprint, scan
        code.update(file.read_bytes())
    version = importlib.metadata.version("ultrasound-ssl")
    return {"sources": [root.written for root in roots], "version": version, "code": code.hexdigest()}


class _Readers:
    """Sources other than the one that lists, by the name a row gives as its `reader`."""

    def __init__(self, host: Host, roots: Sequence[Root]) -> None:
        self.host, self.roots = host, roots

    def __call__(self, name: str, root: int) -> Source:
        path = self.roots[root].path
        given = {"path": path} if path and "path" in options(self.host.get("source", name)) else {}
        return choose(self.host, "source", "reader", {"name": name, **given}).build()


def _measure(
    items: Sequence[Item], roots: Sequence[Root], measure: Measure, journal: Journal, workers: int
) -> list[bytes]:
    """What became of every item, in their order; noted in the journal as it comes."""
    results = [_rejected(item, measure.name) if "rejected" in item.row else journal.find(item) for item in items]
    waiting = [number for number, result in enumerate(results) if result is None]
    fingerprint.fingerprint(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))  # imports once, for all workers
    work = each(measure, (items[number] for number in waiting), workers)
    done = len(items) - len(waiting)
    with closing(work), tqdm(total=len(items), initial=done, unit=" files", disable=None) as bar:
        for place, result in work:
            item = items[waiting[place]]
            measured = _lost(item, result.reason, measure.name) if isinstance(result, Lost) else result
            if has_rejections(measured):
                roots[item.root].check()
            journal.add(item, measured)
            results[waiting[place]] = measured
            bar.update()
    return [result for result in results if result is not None]


def _rejected(item: Item, name: str) -> bytes:
    """An item that the listing itself rejects."""
    return Measured(rejected=[rejection(plain(item.row), item.row["rejected"], name)]).to_bytes()


def _lost(item: Item, why: str, name: str) -> bytes:
    path = str(item.row["path"])
    return Measured(rejected=[rejection(plain(item.row), why, name)], stamps={path: stamp(path)}).to_bytes()
