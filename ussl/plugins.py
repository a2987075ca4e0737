"""The plugin host: finds plugins by entry point or file, and hands out their classes by kind and name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import get_args, get_type_hints

import pluggy
from torch import nn

from ussl import hookspecs
from ussl.options import options, suggest, takes_code

LEADING = {  # positional parameters of constructors; options come after, by keyword
    "head": ("encoder",),
    "target": ("student",),
    "objective": ("student", "target"),
    "probe": ("source",),
}
_RESERVED = {"name", "class_path", "init_args"}  # what a recipe means something else by


def _hooks() -> dict[str, type]:
    """Base classes by hook: each hook's return annotation, `dict[str, type[Masking]]`, is read for the class."""
    found = {}
    for hook, function in vars(hookspecs).items():
        if hook.startswith("ussl_"):
            (found[hook],) = get_args(get_args(get_type_hints(function)["return"])[1])
    return found


HOOKS = _hooks()
KINDS: dict[str, type] = {base.__name__.lower(): base for base in HOOKS.values()}


@dataclass(frozen=True)
class Origin:
    """A plugin: its entry point's name, or a file's, and the distribution it came with, or the file's path."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f'plugin "{self.plugin}" ({self.distribution} {self.version})'.replace(" )", ")")


@dataclass(frozen=True)
class Offer:
    """A class that a plugin offers under a name."""

    kind: str
    name: str
    cls: type
    origin: Origin

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True)
class Broken:
    """A plugin, or one thing it offers, that cannot be used."""

    origin: Origin
    error: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.error}"


class Host:
    """All plugins: those installed with an entry point of group `ussl`, less USSL_DISABLE_PLUGINS=a,b, and files.

    A plugin that cannot be loaded is kept in `broken` and spoils only the recipes that need it.

    Raises:
        ValueError: a file is missing.
    """

    def __init__(self, files: Iterable[str | Path] = ()) -> None:
        self.files: list[Path] = []
        self.broken: list[Broken] = []
        self._offers: list[Offer] = []
        self._manager = pluggy.PluginManager("ussl")
        self._manager.add_hookspecs(hookspecs)
        for point in _enabled(importlib.metadata.entry_points(group="ussl")):
            distribution = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
            self._load(Origin(point.name, *distribution), point.load)
        for file in files:
            self.add(file)

    def add(self, file: str | Path) -> None:
        """Load a plugin from a Python file."""
        path = Path(file).expanduser().resolve()
        if not path.is_file() or path.suffix != ".py":
            raise ValueError(f"plugin {file}: {'not a .py file' if path.exists() else 'no such file'}")
        if path not in self.files:
            self.files.append(path)
            self._load(Origin(path.stem, str(path), ""), partial(_import_file, path))

    def offers(self, kind: str) -> list[Offer]:
        """What is offered of a kind, by name."""
        return sorted(
            (offer for offer in self._offers if offer.kind == known_kind(kind)), key=lambda offer: offer.name
        )

    def get(self, kind: str, name: str) -> type:
        """The class of that name; ValueError when it is unknown, offered twice, or does not fit its kind."""
        offers = self.offers(kind)
        found = [offer for offer in offers if offer.name == name]
        if not found:
            known = sorted({offer.name for offer in offers})
            broken = "".join(f"; it may be in a broken one: {fault}" for fault in self.broken)
            hint = suggest(name, known, ";")
            raise ValueError(f'{kind} "{name}": unknown{hint} known: {", ".join(known) or "none"}{broken}')
        problem = _clash(found) or misfit(kind, found[0].cls)
        if problem:
            raise ValueError(f'{kind} "{name}" of {found[0].origin}: {problem}')
        return found[0].cls

    def faults(self) -> list[Broken]:
        """The broken plugins, the offers that do not fit their kind, and those that clash."""
        found = list(self.broken)
        for offer in self._offers:
            same = [other for other in self._offers if (other.kind, other.name) == (offer.kind, offer.name)]
            same.sort(key=lambda other: other is not offer)
            problem = _clash(same) or misfit(offer.kind, offer.cls)
            if problem:
                found.append(Broken(offer.origin, f'{offer.kind} "{offer.name}": {problem}'))
        return found

    def _load(self, origin: Origin, load: Callable[[], ModuleType]) -> None:
        try:
            module = load()
            self._manager.register(module, name=str(origin))
        except (Exception, SystemExit) as error:
            self._break(origin, _words(error))
            return
        hooks = self._manager.get_hookcallers(module)
        if not hooks:
            self._break(origin, "no function in it is marked @hookimpl")
        for hook in hooks or ():
            for implementation in hook.get_hookimpls():
                if implementation.plugin is module:
                    self._call(origin, hook.name, implementation.function)

    def _call(self, origin: Origin, hook: str, function: Callable[[], object]) -> None:
        if hook not in HOOKS:
            return self._break(origin, f'there is no hook "{hook}"{suggest(hook, HOOKS, "")}')
        try:
            offered = function()
        except (Exception, SystemExit) as error:
            return self._break(origin, f"{hook}: {_words(error)}")
        if not isinstance(offered, dict) or not all(
            isinstance(name, str) and name and isinstance(cls, type) for name, cls in offered.items()
        ):
            return self._break(origin, f'{hook}: returned {offered!r}; return classes by name: {{"name": Class}}')
        kind = HOOKS[hook].__name__.lower()
        self._offers += [Offer(kind, name, cls, origin) for name, cls in offered.items()]

    def _break(self, origin: Origin, error: str) -> None:
        self.broken.append(Broken(origin, error))


def known_kind(kind: str) -> str:
    """`kind`; ValueError when there is none such."""
    if kind not in KINDS:
        raise ValueError(f'kind "{kind}": unknown{suggest(kind, KINDS, ";")} known: {", ".join(KINDS)}')
    return kind


def _enabled(points: Iterable[importlib.metadata.EntryPoint]) -> list[importlib.metadata.EntryPoint]:
    points = list(points)
    disabled = {name.strip() for name in os.environ.get("USSL_DISABLE_PLUGINS", "").split(",")} - {""}
    names = {point.name for point in points}
    for name in sorted(disabled - names):  # perhaps uninstalled since: no reason to stop
        print(f'note: USSL_DISABLE_PLUGINS: no plugin "{name}"{suggest(name, names, "")}', file=sys.stderr)
    return [point for point in points if point.name not in disabled]


def _import_file(path: Path) -> ModuleType:
    """The module of a file, under a name of its own in sys.modules so that what it defines can be pickled."""
    name = f"ussl_file_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _clash(offers: Sequence[Offer]) -> str:
    others = " and ".join(str(offer.origin) for offer in offers[1:])
    installed = [offer.origin.plugin for offer in offers if offer.origin.version]
    way = f"turn one off with USSL_DISABLE_PLUGINS={installed[-1]}" if installed else "pass only one of the files"
    return others and f"also offered by {others}; {way}"


@lru_cache
def misfit(kind: str, cls: type) -> str:
    """What keeps a class from being used as its kind; empty when nothing does."""
    base = KINDS[kind]
    if not issubclass(cls, base):
        return f"{cls.__name__} is not a subclass of {base.__name__}"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        return f"{cls.__name__} does not define {', '.join(missing)}"
    return _constructor_misfit(cls, LEADING.get(kind, ())) or _method_misfit(cls, base)


def _constructor_misfit(cls: type, leading: tuple[str, ...]) -> str:
    own = cls.__init__ not in (object.__init__, nn.Module.__init__)  # type: ignore[misc]
    parameters = list(inspect.signature(cls).parameters.values()) if own else []
    first, rest = parameters[: len(leading)], parameters[len(leading) :]
    wanted = ", ".join(("self", *leading))
    if [p.name for p in first] != list(leading) or any(p.kind > p.POSITIONAL_OR_KEYWORD for p in first):
        return f"its constructor must be __init__({wanted}, *, options), since a {cls.__name__} is given {wanted[6:]}"
    for parameter in rest:
        if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            return f'its option "{parameter.name}" must be keyword-only: __init__({wanted}, *, {parameter.name}, ...)'
        if parameter.name in _RESERVED:
            return f'no option may be called "{parameter.name}": recipes use that word'
    try:
        known = options(cls, leading)
    except Exception as error:
        return f"the types of its options cannot be read: {_words(error)}"
    code = [name for name, option in known.items() if takes_code(option.hint)]
    return f'its option "{code[0]}" is code, which no recipe can hold: take a name or a number' if code else ""


def _method_misfit(cls: type, base: type) -> str:
    """Whether every method of ussl.parts that `cls` overrides can be called as the base's is."""
    ours = [parent for parent in base.__mro__ if parent.__module__ == base.__module__]
    for name, method in ((name, method) for parent in ours for name, method in vars(parent).items()):
        given = getattr(cls, name)
        if name == "__init__" or not isinstance(method, FunctionType) or not isinstance(given, FunctionType):
            continue
        parameters = inspect.signature(method).parameters.values()
        for call in ([p.name for p in parameters if p.default is p.empty], [p.name for p in parameters]):
            try:
                inspect.signature(given).bind(*call)
            except TypeError:
                return f"its {name}{inspect.signature(given)} cannot be called as {name}({', '.join(call[1:])})"
    return ""
