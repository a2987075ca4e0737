"""A recipe: files and command-line options become named, checked choices of parts, and then the parts themselves."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from ussl import parts
from ussl.layers import PARTS, Layer, find, merge, overrides, read, to_yaml
from ussl.options import REQUIRED, Located, check, options, suggest
from ussl.plugins import LEADING, Host, misfit
from ussl.settings import Loader, Top, Train

__all__ = ["Loader", "Recipe", "Train", "load"]

OPTIONAL = {"head", "masking", "target"}
TOP = [item.name for item in fields(Top)]
SETTINGS: dict[str, type] = {"train": Train, "loader": Loader}
KEYS = [*TOP, "train", "loader", *PARTS, "probes"]
Settings = TypeVar("Settings", Train, Loader, Top)


def load(
    recipes: Sequence[str | Path],
    pairs: Sequence[tuple[str, str]],
    host: Host,
    *,
    data: str | None = None,
    trust: bool = False,
) -> Recipe:
    """The recipe that files (the later wins), dotted overrides (key and text) and `data` make together.

    Raises:
        ValueError: whatever is wrong with it, in one line.
    """
    if not recipes:
        raise ValueError("no recipe: write --recipe FILE, or --recipe NAME for one of those `ussl recipes` lists")
    files = [find(recipe) for recipe in recipes]
    written = overrides(pairs, os.getcwd())
    if data is not None:
        written["data"] = Located(data, os.getcwd())
    layer: Layer = reduce(merge, [*map(read, files), written])
    for key in layer:
        if key not in KEYS:
            inside = [f"{part}.{key}" for part, cls in SETTINGS.items() if key in {item.name for item in fields(cls)}]
            hint = f'; did you mean "{inside[0]}"?' if inside else suggest(key, KEYS, ".")
            raise ValueError(f'no key "{key}" in a recipe{hint} Its keys: {", ".join(KEYS)}')
    if not trust and (where := _class_path(layer)):
        raise ValueError(f"{where}: class_path imports code; pass --trust if you trust this recipe")
    return Recipe(files[-1].stem, layer, host, trust)


class Recipe:
    """A checked recipe. `resolved` has names, absolute paths and every default, and runs again unchanged."""

    def __init__(self, name: str, layer: Layer, host: Host, trust: bool) -> None:
        self.name, self._host = name, host
        top, written = _settings("", Top, {key: layer[key] for key in TOP if key in layer})
        self.seed, self.ema, self.export, self.joined = top.seed, top.ema, top.export, top.joined
        self.train, train = _settings("train", Train, layer.get("train"))
        self.loader, loader = _settings("loader", Loader, layer.get("loader"))
        _add_plugins(host, top.plugins, trust)
        data = written.pop("data")  # source.path in a resolved recipe
        if isinstance(said := layer.get("data"), Located) and said.is_address:
            data = str(said)  # a path has no two slashes
        given = {kind: _given(kind, layer.get(kind, {})) for kind in PARTS}
        self._parts = {
            kind: part and (_source(host, part, data) if kind == "source" else choose(host, kind, kind, part))
            for kind, part in given.items()
        }
        self._probes = {
            key: _probe(host, key, part) for key, part in layer.get("probes", {}).items() if part is not None
        }
        self.resolved: Layer = {
            **written | {"plugins": [str(file) for file in host.files]},
            "train": train,
            "loader": loader,
            **{kind: part and part.written for kind, part in self._parts.items()},
            "probes": {
                key: probe.written | {"source": source.written} for key, (probe, source) in self._probes.items()
            },
        }

    def to_yaml(self) -> str:
        """The resolved recipe as the text of a file; loaded again it is equal."""
        return to_yaml(self.resolved)

    def check_data(self) -> None:
        """ValueError when the source needs pictures and nothing says where they are."""
        if self._keywords("source").get("path", "") is None:
            raise ValueError("this recipe needs pictures: write --data FOLDER (or a manifest), or set USSL_DATA")

    def source(self) -> parts.Source:
        """Where the pictures come from."""
        self.check_data()
        return self._build("source")

    def reader(self, name: str) -> parts.Source:
        """The source that reads the rows whose `reader` is `name`; one that takes a path is given the recipe's."""
        own = self._parts["source"]
        if own and name == own.written.get("name"):
            return self.source()
        path = self._keywords("source").get("path")
        given = {"path": str(path)} if path and "path" in options(self._host.get("source", name)) else {}
        return choose(self._host, "source", "reader", {"name": name} | given).build()

    def formats(self) -> dict[str, type[parts.Initialization]]:
        """The checkpoint formats that its plugins know."""
        return {o.name: self._host.get("initialization", o.name) for o in self._host.offers("initialization")}

    def sampler(self) -> parts.Sampler:
        """The order of an epoch."""
        return self._build("sampler")

    def augmentation(self) -> parts.Augmentation:
        """What turns batches into views."""
        return self._build("augmentation")

    def encoder(self, statistics: Mapping[str, Any] | None = None) -> parts.Encoder:
        """The network that is trained; `statistics` (mean, std) are its own where it has them as options."""
        choice = self._parts["encoder"]
        assert isinstance(choice, Choice)
        known = {name: value for name, value in (statistics or {}).items() if name in choice.keywords}
        return replace(choice, keywords=choice.keywords | known).build()

    def head(self, encoder: parts.Encoder) -> parts.Head | None:
        """What stands between encoder and objective."""
        return self._build("head", encoder)

    def masking(self) -> parts.Masking | None:
        """What chooses the patches that the student does not see."""
        return self._build("masking")

    def target(self, student: parts.Student) -> parts.Target | None:
        """What the student is to predict."""
        return self._build("target", student)

    def objective(self, student: parts.Student, target: parts.Target | None) -> parts.Objective:
        """The loss."""
        return self._build("objective", student, target)

    def optimizer(self) -> parts.Optimizer:
        """The update rule."""
        return self._build("optimizer")

    def probes(self) -> dict[str, parts.Probe]:
        """The measurements while training, by name, each given the recipe's source."""
        return {key: probe.build(source.build()) for key, (probe, source) in self._probes.items()}

    def _build(self, kind: str, *leading: Any) -> Any:
        choice = self._parts[kind]
        return choice and choice.build(*leading)

    def _keywords(self, kind: str) -> dict[str, Any]:
        choice = self._parts[kind]
        return choice.keywords if choice else {}


@dataclass(frozen=True)
class Choice:
    """One part of a recipe: its class and keywords, and the same as a file has them."""

    label: str
    cls: type
    keywords: dict[str, Any]
    written: Layer

    def build(self, *leading: Any) -> Any:
        """The part; what its constructor refuses is a ValueError that begins with the part's name."""
        try:
            return self.cls(*leading, **self.keywords)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.label}: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:  # a plugin's fault
            raise ValueError(f"{self.label}: {type(error).__name__}: {error}") from error


def choose(host: Host, kind: str, where: str, part: Layer, later: tuple[str, ...] = ()) -> Choice:
    """The checked choice that a part `{name, options}` or `{class_path, init_args}` is; options in `later` wait."""
    cls, given = _class(host, kind, where, part)
    word = "class_path" if "class_path" in part else "name"
    label = f"{where} ({part[word]})"
    keywords, written = check(label, cls, given, (*LEADING.get(kind, ()), *later))
    waiting = dict.fromkeys(later)
    body = {"init_args": written | waiting} if word == "class_path" else written | waiting
    return Choice(label, cls, keywords | waiting, {word: str(part[word]), **body})


def _class(host: Host, kind: str, where: str, part: Layer) -> tuple[type, Layer]:
    """The class of a part and the options given to it."""
    if "class_path" not in part:
        given = {key: item for key, item in part.items() if key != "name"}
        return host.get(kind, str(part["name"])), given
    if extra := part.keys() - {"class_path", "init_args"}:
        raise ValueError(f"{where}: beside class_path only init_args may stand, not {', '.join(sorted(extra))}")
    module, _, name = str(part["class_path"]).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: cannot import {part['class_path']}: {error}") from error
    if problem := misfit(kind, cls):
        raise ValueError(f"{where}: {part['class_path']}: {problem}")
    return cls, dict(part.get("init_args") or {})


def _source(host: Host, part: Layer, data: str | None, where: str = "source") -> Choice:
    """The source with `data` as its path, or else USSL_DATA where nothing says its path; without either it waits."""
    cls, given = _class(host, "source", where, part)
    known = options(cls)
    if data and "path" not in known:  # it makes its own pictures, which are not wanted
        return choose(host, "source", where, {"name": "images", "path": data})
    if "path" not in known:
        return choose(host, "source", where, part)
    path = data or given.get("path", known["path"].default)
    if path in (None, REQUIRED) and os.environ.get("USSL_DATA"):
        path = Located(os.environ["USSL_DATA"], os.getcwd())
    given.pop("path", None)
    waits = path in (None, REQUIRED)
    given |= {} if waits else {"path": path}
    part = part | {"init_args": given} if "class_path" in part else {"name": part["name"], **given}
    return choose(host, "source", where, part, ("path",) if waits else ())


def _probe(host: Host, key: str, part: Layer) -> tuple[Choice, Choice]:
    """A probe and its source, which `data` or `source` in it says: labelled pictures other than those trained on."""
    where = f"probes.{key}"
    options = {word: item for word, item in part.items() if word not in ("data", "source")}
    data, source = part.get("data"), part.get("source")
    if isinstance(source, str):
        source = {"name": source}
    if (data is None) == (source is None):
        raise ValueError(
            f"{where}: on which pictures? Write data: MANIFEST or source: NAME in it, one of them, "
            f"labelled pictures other than those trained on"
        )
    if data is not None:
        source = {"name": PARTS["source"], "path": data}
    if not isinstance(source, Mapping):
        raise ValueError(f"{where}.source: expected a name or a mapping, not {source}")
    probe = choose(host, "probe", where, options if "class_path" in options else {"name": key} | options)
    return probe, _source(host, _given("source", dict(source)) or {}, None, f"{where}.source")


def _given(kind: str, part: Layer | None) -> Layer | None:
    """A part with its kind's default name; None for an optional one that is null or not there."""
    if not part and kind in OPTIONAL:
        return None
    if part is not None and ("name" in part or "class_path" in part):
        return part
    if part is None or not PARTS[kind]:
        raise ValueError(f"{kind}: has no name; write {kind}: NAME (`ussl plugins --kind {kind}` lists them)")
    return {"name": PARTS[kind], **part}


def _settings(label: str, cls: type[Settings], given: Any) -> tuple[Settings, Layer]:
    if not isinstance(given, Mapping | None):
        raise ValueError(f"{label}: expected a mapping, not {given}")
    keywords, written = check(label, cls, given or {})
    try:
        return cls(**keywords), written
    except ValueError as error:
        raise ValueError(f"{label}.{error}".lstrip(".")) from error


def _add_plugins(host: Host, files: Sequence[Path], trust: bool) -> None:
    for file in files:
        if not trust and file.resolve() not in host.files:
            raise ValueError(f"plugins: {file} is code; pass --plugin {file} or --trust if you trust it")
        host.add(file)


def _class_path(item: Any, where: str = "") -> str:
    """Where in a recipe a `class_path` stands; empty when nowhere."""
    if isinstance(item, Mapping):
        if "class_path" in item:
            return where or "recipe"
        found = (_class_path(inner, f"{where}.{key}".lstrip(".")) for key, inner in item.items())
        return next(filter(None, found), "")
    if isinstance(item, list):
        return next(filter(None, (_class_path(inner, where) for inner in item)), "")
    return ""
