"""The command line: `ussl plugins`, `ussl recipes`, ... Each command is a function that imports what it needs."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ussl.data import commands as data
from ussl.errors import RunFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted with a checkpoint."""
    parser = argparse.ArgumentParser(prog="ussl", description="Self-supervised learning on ultrasound images")
    parser.add_argument("--version", action="version", version=importlib.metadata.version("ultrasound-ssl"))
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_fit(commands)
    _add_export(commands)
    data.add(commands, _command)
    _add_plugins(commands)
    _add_recipes(commands)
    args, rest = parser.parse_known_args(argv)
    try:
        if rest and not args.takes_options:
            raise ValueError(f"{rest[0]}: unknown; `ussl {args.command} --help` lists the options")
        return args.handler(args, rest) if args.takes_options else args.handler(args)
    except (ValueError, RunFailed) as error:
        if os.environ.get("USSL_TRACEBACK") == "1":
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
            print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except OSError as error:
        if os.environ.get("USSL_TRACEBACK") == "1":
            raise
        if isinstance(error, BrokenPipeError):  # the reader of a pipe had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _command(
    commands: Any, name: str, run: Callable[..., int], help: str, takes_options: bool = False
) -> argparse.ArgumentParser:
    """A subcommand; `takes_options`: run(args, rest) is given what the parser does not know, recipe options."""
    parser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    parser.set_defaults(handler=run, command=name, takes_options=takes_options)
    return parser


def _add_plugin_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a local plugin (repeatable)")


def _add_fit(commands: Any) -> None:
    parser = _command(commands, "fit", fit, "Pre-train an encoder as a recipe says.", takes_options=True)
    parser.usage = "ussl fit --recipe RECIPE [--data PATH] [options] [--any.key value ...]"
    parser.add_argument(
        "--recipe", action="append", default=[], help="a file, or a name of `ussl recipes` (repeatable)"
    )
    parser.add_argument("--data", metavar="PATH", help="a folder of pictures or a manifest (or set USSL_DATA)")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/<recipe>-<time>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR from its newest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    parser.add_argument("--print_config", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument("--trust", action="store_true", help="let the recipe import code (class_path, plugins)")
    _add_plugin_files(parser)
    parser.epilog = (
        "Every key of the recipe is an option: --train.steps 100, --encoder.size large, --head null. "
        "`ussl plugins --kind encoder --name vit` lists a part's options."
    )


def fit(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """`ussl fit`: read the recipe, then train."""
    from ussl import recipe as recipes
    from ussl.layers import arguments
    from ussl.plugins import Host

    if args.resume and args.overwrite:
        raise ValueError("--resume continues a run and --overwrite replaces it: write one of them")
    if args.resume and not args.out:
        raise ValueError("--resume: of which run? Write --out DIR")
    recipe = recipes.load(args.recipe, arguments(rest), Host(args.plugin), data=args.data, trust=args.trust)
    if args.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    recipe.check_data()
    out = args.out or f"runs/{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if "LOCAL_RANK" in os.environ:  # a process that the first one started: it has named the folder
        out = os.environ.get("USSL_OUT", out)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"out       {out}", flush=True)
    from ussl.train import fit

    os.environ["USSL_OUT"] = out
    try:
        return fit(recipe, Path(out), args.resume, args.overwrite)
    finally:
        del os.environ["USSL_OUT"]


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", export, "Write the encoder of a finished run for another program.")
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--to", choices=["timm", "onnx"], required=True)
    parser.add_argument("--out", metavar="PATH", help="where to (default: in the run's folder)")


def export(args: argparse.Namespace) -> int:
    """`ussl export`: an encoder folder for timm, or an ONNX file."""
    from ussl.export import export_run

    print(export_run(Path(args.run), args.to, Path(args.out) if args.out else None))
    return 0


def _add_plugins(commands: Any) -> None:
    parser = _command(commands, "plugins", plugins, "List the parts that recipes can name, and broken plugins.")
    parser.add_argument("--kind", help="only this kind: encoder, masking, ...")
    parser.add_argument("--name", help="the options of one part of that kind")
    parser.add_argument("--json", action="store_true", help="for programs")
    _add_plugin_files(parser)


def plugins(args: argparse.Namespace) -> int:
    """`ussl plugins`: what every plugin offers, then what is broken; or the options of one part."""
    from ussl.plugins import KINDS, Host, known_kind

    kinds = [known_kind(args.kind)] if args.kind else list(KINDS)
    host = Host(args.plugin)
    if args.name:
        if not args.kind:
            raise ValueError(f"--name {args.name}: of which kind? Write --kind too")
        return _options(host.get(args.kind, args.name), args)
    offers = [offer for kind in kinds for offer in host.offers(kind)]
    listed = [{"kind": o.kind, "name": o.name, "summary": o.summary, **asdict(o.origin)} for o in offers]
    broken = [{**asdict(fault.origin), "error": fault.error} for fault in host.faults()]
    if args.json:
        print(json.dumps({"plugins": listed, "broken": broken}, indent=2))
        return 0
    _table(listed)
    if broken:
        print("\nbroken:")
        _table(broken)
    return 0


def _options(cls: type, args: argparse.Namespace) -> int:
    """Print the options of a class: name, type, default, and what its docstring says of them."""
    from ussl.options import REQUIRED, describe, options, plain
    from ussl.plugins import LEADING

    rows = [
        {
            "option": name,
            "type": describe(option.hint),
            "default": "required" if option.default is REQUIRED else json.dumps(plain(option.default)),
            "help": option.help,
        }
        for name, option in options(cls, LEADING.get(args.kind, ())).items()
    ]
    if args.json:
        print(json.dumps({"kind": args.kind, "name": args.name, "options": rows}, indent=2))
        return 0
    print(f"{args.kind} {args.name}: {(cls.__doc__ or '').strip()}\n".replace("\n    ", "\n"))
    _table(rows or [{"option": "none"}])
    return 0


def _add_recipes(commands: Any) -> None:
    parser = _command(commands, "recipes", recipes, "List the recipes that came with ussl, for --recipe NAME.")
    parser.add_argument("--json", action="store_true", help="for programs")


def recipes(args: argparse.Namespace) -> int:
    """`ussl recipes`: the shipped recipes with their method and paper, from the comments their files begin with."""
    from ussl.layers import headings, shipped

    listed = [{"name": name, **headings(path)} for name, path in shipped().items()]
    if args.json:
        print(json.dumps({"recipes": listed}, indent=2))
        return 0
    _table([{key: recipe[key] for key in ("name", "method", "paper")} for recipe in listed])
    return 0


def _table(rows: Sequence[dict[str, str]]) -> None:
    """Print rows of equal keys in aligned columns."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
