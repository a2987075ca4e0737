"""The options a class takes and whether those given fit: jsonargparse checks types, errors use a recipe's words."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

REQUIRED = inspect.Parameter.empty
_TEXT = (int, float, str, list, tuple, dict, set, Path, Enum, type(None))  # what can be written in a file


class Located(str):
    """Text that remembers the folder of the file it was written in, for options that are paths."""

    folder: str

    def __new__(cls, text: str, folder: str | Path) -> Located:
        """`text`, written in `folder`."""
        self = super().__new__(cls, text)
        self.folder = str(folder)
        return self

    @property
    def is_address(self) -> bool:
        """Whether it names something elsewhere, as s3://bucket/prefix does, and so is no path."""
        return re.match(r"\w[\w+.-]+://", self) is not None

    def path(self) -> str:
        """The absolute path that it is, when it is one. ValueError: it is empty, as an unset variable is."""
        if not self.strip():
            raise ValueError("an empty path; write the path of a file or folder")
        return os.path.abspath(os.path.join(self.folder, os.path.expanduser(self)))


@dataclass(frozen=True)
class Option:
    """A keyword of a constructor: `hint` is its resolved annotation, `default` REQUIRED when it has none."""

    hint: Any
    default: Any
    help: str


def suggest(word: object, known: Iterable[str], end: str) -> str:
    """`; did you mean "size"?` when something known is close, else `end`."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else end


@lru_cache
def options(cls: type, leading: tuple[str, ...] = ()) -> dict[str, Option]:
    """What a recipe may set: the constructor's parameters after the `leading` ones, through `**kwargs` to bases."""
    found: dict[str, Option] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if inspect.isfunction(init):
            hints, helps = get_type_hints(init), _helps(base)
            for name, parameter in inspect.signature(init).parameters.items():
                found.setdefault(name, Option(hints.get(name, Any), parameter.default, helps.get(name, "")))
    return {name: found[name] for name in _parser(cls, leading)[1]}


def check(
    label: str, cls: type, given: Mapping[str, Any], leading: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords for `cls` from what a recipe gives: defaults filled, types right; and the same as a file has them.

    Raises:
        ValueError: an unknown, missing or ill-typed option, named after `label`.
    """
    known, parser = options(cls, leading), _parser(cls, leading)[0]
    for name in given:
        if name not in known:
            close = suggest(name, known, ".")
            raise ValueError(f'{label}: no option "{name}"{close} Its options: {", ".join(known) or "none"}')
    for name, option in known.items():
        if option.default is REQUIRED and name not in given:
            raise ValueError(f"{label}: {name} is missing; it has no default")
        if name in given and given[name] is None and not {Any, type(None)} & {*_leaves(option.hint)}:
            raise _wrong(label, name, option.hint, None)  # which jsonargparse lets pass
    placed = {name: _place(value, known[name].hint) for name, value in given.items()}
    try:
        parsed = parser.parse_object(placed)
        return parser.instantiate(parsed).as_dict(), plain(parsed.as_dict())
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        key = re.search(r'Parser key "([^".]+)', str(error))
        if key is None or key[1] not in given:
            raise ValueError(f"{label}: {' '.join(str(error).split())}") from error
        raise _wrong(label, key[1], known[key[1]].hint, placed[key[1]]) from error


@lru_cache
def _parser(cls: type, leading: tuple[str, ...]) -> tuple[Any, list[str]]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    return parser, parser.add_class_arguments(cls, skip=set(leading), fail_untyped=False)


def _wrong(label: str, name: str, hint: Any, value: Any) -> ValueError:
    kind = describe(hint)
    article = ("an " if kind[0] in "aeiou" else "a ") if kind.isidentifier() else ""
    where = f"{label}: {name}" if label.endswith(")") else f"{label}.{name}".lstrip(".")
    return ValueError(f"{where}: expected {article}{kind}, not {json.dumps(plain(value))}")


def _helps(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its constructor say of each parameter."""
    from docstring_parser import parse

    texts = (cls.__doc__ or "", vars(cls)["__init__"].__doc__ or "")
    params = [param for text in texts for param in parse(text).params]
    return {name: " ".join((p.description or "").split()) for p in params for name in p.arg_name.split(", ")}


def _place(value: Any, hint: Any) -> Any:
    """`value` with its paths absolute; where the hint takes `str | Path`, text is a path if something is there."""
    if isinstance(value, Mapping):
        return {key: _place(item, hint) for key, item in value.items()}
    if isinstance(value, list):
        return [_place(item, hint) for item in value]
    if not isinstance(value, Located):
        return value
    if value.is_address:
        return str(value)
    leaves = _leaves(hint)
    is_path = Path in leaves and value not in leaves and (str not in leaves or os.path.exists(value.path()))
    return value.path() if is_path else str(value)


def _leaves(hint: Any) -> list[Any]:
    """The types and literal values at the ends of a hint; a mapping's keys left out."""
    origin = get_origin(hint)
    if origin is Literal or origin in (type, Callable):
        return list(get_args(hint)) if origin is Literal else [origin]
    inner = get_args(hint)[1:] if origin in (dict, Mapping) else get_args(hint)
    return [leaf for item in inner for leaf in _leaves(item)] or [hint]


def takes_code(hint: Any) -> bool:
    """Whether such an option wants a callable, a class or an object, which no file can hold."""
    kinds = [leaf for leaf in _leaves(hint) if leaf is not Any and isinstance(leaf, type)]
    return any(not issubclass(kind, _TEXT) and not is_dataclass(kind) for kind in kinds)


def describe(hint: Any) -> str:
    """A type in short: `int | "auto"`, `[float, float]`."""
    inner, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return " | ".join(map(json.dumps, inner))
    words = ["..." if item is ... else describe(item) for item in inner]
    if origin in (Union, types.UnionType):
        return " | ".join(words)
    if origin in (list, tuple):
        return f"[{', '.join(words)}{', ...' if origin is list else ''}]"
    if origin is dict:
        return f"{{{words[0]}: {words[1]}}}"
    if hint in (Path, type(None)):
        return "path" if hint is Path else "null"
    return getattr(hint, "__name__", str(hint))


def plain(value: Any) -> Any:
    """`value` in the types a YAML file has."""
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else str(value)
