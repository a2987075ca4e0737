"""`ussl data ...`: from folders to a corpus. What each command does is in the module of its name."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

Command = Callable[..., argparse.ArgumentParser]  # (commands, name, run, help, takes_options) -> its parser


def add(commands: Any, command: Command) -> None:
    """Add `data` and its own commands to the command line."""
    text = "Index, look at, clean, split and pack ultrasound pictures."
    parser = commands.add_parser("data", help=text, description=text, allow_abbrev=False)
    inner = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_index(command(inner, "index", _run("index"), "List the pictures of folders in a manifest.", True))
    _add_summary(command(inner, "summary", _run("summary"), "Say what a manifest holds: organs, sources, patients."))
    _add_audit(command(inner, "audit", _run("audit"), "Find duplicates, shared patients, burned-in text."))
    _add_split(command(inner, "split", _run("split"), "Divide into train, val and test by patient, stratified."))
    _add_pack(command(inner, "pack", _run("pack"), "Decode once, into shards that training reads at memory speed."))
    _add_stream(command(inner, "stream", _run("stream"), "Rewrite a pack for training from object storage."))


def _run(module: str) -> Callable[..., int]:
    """The function `command` of ussl.data.<module>, imported when it is called."""

    def run(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
        return importlib.import_module(f"ussl.data.{module}").command(args, rest)

    return run


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.usage = "ussl data index SOURCE [ROOT ...] -o MANIFEST [options] [--option value ...]"
    parser.add_argument("source", help="how the folders are laid out: a name of `ussl plugins --kind source`")
    help = "a folder, or a file where the source takes files; none for a source that makes its pictures"
    parser.add_argument("roots", nargs="*", metavar="ROOT", help=help)
    _add_out(parser, "the manifest to write, .parquet or .csv; rejected.csv is written beside it", required=True)
    parser.add_argument("--add", action="store_true", help="keep what the manifest holds of other sources and roots")
    parser.add_argument("--overwrite", action="store_true", help="replace the manifest")
    _add_workers(parser)
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a local plugin (repeatable)")
    parser.epilog = (
        "Options of the source follow as they are named there: --pattern '{organ}/{label}/{patient}_{view}.png'. "
        "`ussl plugins --kind source --name images` lists them."
    )


def _add_summary(parser: argparse.ArgumentParser) -> None:
    _add_manifest(parser)
    parser.add_argument("--html", metavar="FILE", help="also write one self-contained page")
    parser.add_argument("--figure", metavar="FILE", help="also write the picture: .svg, .pdf or .png")
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_audit(parser: argparse.ArgumentParser) -> None:
    _add_manifest(parser)
    help = "a task's manifest, whose test split must not be in this one (repeatable)"
    parser.add_argument("--task", action="append", default=[], metavar="MANIFEST", help=help)
    parser.add_argument("--drop", action="store_true", help="write the manifest without what was found")
    _add_out(parser, "where to (default: MANIFEST.clean.parquet, beside it)")
    help = "a table of all findings, one row a picture (default: MANIFEST.audit.csv, beside it)"
    parser.add_argument("--report", metavar="FILE", help=help)
    _add_workers(parser)
    parser.add_argument("--json", action="store_true", help="for programs")


def _add_split(parser: argparse.ArgumentParser) -> None:
    _add_manifest(parser)
    parser.add_argument("--ratio", default="3:1:1", metavar="A:B:C", help="train:val:test (default: 3:1:1); or A:B")
    help = "the column that each split should have in equal shares (default: label; none: no column)"
    parser.add_argument("--stratify", default=None, metavar="COLUMN", help=help)
    help = "the column that is never divided (default: patient; none: only copies stay together)"
    parser.add_argument("--group", default=None, metavar="COLUMN", help=help)
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a split that the manifest has, and the file to write"
    )
    _add_out(parser, "where to (default: MANIFEST.split.parquet, beside it)")
    _add_workers(parser)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    _add_manifest(parser)
    _add_out(parser, "the folder of the pack (default: MANIFEST.pack, beside it)")
    help = "pixels of a picture's short side, larger ones are scaled down (default: 384)"
    parser.add_argument("--short-side", type=int, default=384, metavar="PIXELS", help=help)
    help = "keep all, black out what is outside of the scan, or cut the picture to it as well (default: keep)"
    parser.add_argument("--scan", choices=["keep", "mask", "crop"], default="keep", help=help)
    parser.add_argument("--grey", action="store_true", help="nearly colourless RGB becomes grey (JPEG leaves tints)")
    _add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="make the pack again")
    parser.add_argument("--verify", action="store_true", help="only compare every picture of a pack with its digest")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a local plugin (repeatable)")


def _add_stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pack", help="the folder that `ussl data pack` wrote")
    _add_out(parser, "the folder to write, to be uploaded as it is", required=True)
    help = "MiB that are fetched at once, a random sample of all pictures (default: 64)"
    parser.add_argument("--chunk-mb", type=float, default=64, metavar="MB", help=help)
    parser.add_argument("--seed", type=int, default=0, help="another seed, another order (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the stream that is there")


def _add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", help="a manifest (.parquet or .csv), or a folder with one at its top")


def _add_out(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    parser.add_argument("-o", "--out", metavar="PATH", required=required, help=help)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    help = "processes that read pictures (default: one a core)"
    parser.add_argument("--workers", type=int, default=None, metavar="N", help=help)
