"""Recipe files and command-line options before anything is checked: reading, `from:`, and merging layer on layer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ussl.options import Located, suggest

PARTS = {  # what a recipe's parts are when it does not say; "" = none
    "source": "images",
    "sampler": "natural",
    "augmentation": "crop",
    "encoder": "",
    "head": "",
    "masking": "",
    "target": "",
    "objective": "",
    "optimizer": "adamw",
}
Layer = dict[str, Any]


class _Scalars:
    """YAML 1.2's plain scalars: only true and false are booleans, 1e-4 is a number, a date or 007 is text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("merge", r"<<", "<"),
):
    for _character in _first:
        _resolver = (f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"))
        _Scalars.yaml_implicit_resolvers.setdefault(_character, []).append(_resolver)


class _Loader(_Scalars, yaml.SafeLoader):
    """Reads a recipe: text becomes Located, and a key written twice is refused."""

    def __init__(self, text: str, name: str, folder: Path) -> None:
        super().__init__(text)
        self.name, self.folder = name, folder

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, its keys plain text."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise ValueError(f'{self.name}:{key.start_mark.line + 1}: "{key.value}" is written twice')
        pairs = super().construct_mapping(node, deep=True)
        return {str(key) if isinstance(key, str) else key: value for key, value in pairs.items()}

    def construct_text(self, node: yaml.ScalarNode) -> Located:
        """Text with the folder it was written in."""
        return Located(self.construct_scalar(node), str(self.folder))


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back equal, and what YAML 1.1 readers understand: `on` is quoted for them."""

    yaml_implicit_resolvers = {
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Scalars.yaml_implicit_resolvers.get(first, [])
        for first in yaml.SafeDumper.yaml_implicit_resolvers | _Scalars.yaml_implicit_resolvers
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Never write anchors."""
        return True

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        """A list on one line."""
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


def to_yaml(layer: Layer) -> str:
    """The text of a recipe, in its order."""
    return yaml.dump(layer, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def shipped() -> dict[str, Path]:
    """The recipes that came with ussl, by the name `--recipe` takes; a file with an underscore is a part of others."""
    root = Path(str(resources.files("ussl_recipes")))
    files = (path for path in sorted(root.rglob("*.yaml")) if not path.name.startswith("_"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def headings(path: Path) -> dict[str, str]:
    """What the first comments of a recipe say: its method and title (`# METHOD: what it does`), its paper."""
    comments = [line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").split("\n\n")[0].split("\n")]
    said = dict(line.split(None, 1) for line in comments[1:] if " " in line)
    return {"method": comments[0].partition(":")[0], "title": comments[0], "paper": said.get("paper", "")}


def find(name: str | Path, folder: str | Path = ".") -> Path:
    """The file of a recipe: a path relative to `folder`, else a shipped one by name."""
    path = Path(os.path.abspath(Path(folder, Path(name).expanduser())))
    if path.exists() and not path.is_dir():  # a pipe too
        return path
    known = shipped()
    if (short := str(name).removesuffix(".yaml")) in known:
        return known[short]
    hint = suggest(short, known, ";")
    raise ValueError(f'recipe "{name}": no such file{hint} shipped recipes: {", ".join(known)}')


def read(path: Path, under: Sequence[Path] = ()) -> Layer:
    """A recipe file on top of those it is `from:`."""
    if path in under:
        raise ValueError(f"{path}: `from:` goes round in a circle: {' -> '.join(p.name for p in (*under, path))}")
    layer = _mapping(path)
    parent = layer.pop("from", None)
    if parent is None:
        return merge({}, layer)
    if not isinstance(parent, str):
        raise ValueError(f"{path}: from: expected the name of one recipe, not {parent}")
    return merge(read(find(parent, path.parent), (*under, path)), layer)


def _mapping(path: Path) -> Layer:
    try:
        layer = _Loader(path.read_text(encoding="utf-8"), str(path), path.parent).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(layer, dict):
        raise ValueError(f"{path}:1: a recipe is lines of `key: value`; this is {json.dumps(layer)[:60]}")
    return layer


def arguments(words: Sequence[str]) -> list[tuple[str, str]]:
    """Dotted keys and raw values of `--encoder vit --train.steps 3 --a.b=c`; every option takes a value."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        key, equals, value = rest.pop(0).partition("=")
        if not re.fullmatch(r"--[A-Za-z_][\w.-]*", key):
            raise ValueError(f'"{key}{equals}{value}": expected an option, --key value')
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"{key}: has no value; write {key} VALUE (true or false for a switch)")
            value = rest.pop(0)
        pairs.append((key[2:], value))
    return pairs


def value(key: str, text: str, folder: str | Path) -> Any:
    """What `text` means after `--key`: a list, mapping or quoted text as in a file, else one plain scalar."""
    loader = _Loader(text, f"--{key}", Path(folder))
    if text[:1] in ("[", "{", '"', "'"):
        try:
            return loader.get_single_data()
        except yaml.YAMLError as error:
            raise ValueError(f"--{key}: cannot read {text}: {getattr(error, 'problem', error)}") from error
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text))


def overrides(pairs: Sequence[tuple[str, str]], folder: str | Path) -> Layer:
    """The layer that dotted options are, whatever their order: `encoder: vit` and `encoder.size: large` meet."""
    layer: Layer = {}
    for key, text in pairs:
        *parents, last = key.split(".")
        inner: Any = value(key, text, folder)
        if _is_part(key) and isinstance(inner, str):
            inner = {"name": inner}
        layer = _deep(layer, reduce(lambda item, word: {word: item}, reversed((*parents, last)), inner))
    return layer


def _is_part(key: str) -> bool:
    return key in PARTS or re.fullmatch(r"probes\.[^.]+", key) is not None


def merge(base: Layer, layer: Layer) -> Layer:
    """`layer` over `base`: parts without a name and mappings merge; parts with one, lists and scalars replace.

    `data` and `source.path` say the same thing, so the later of the two counts.
    """
    base, layer = dict(base), _named(layer)
    gives_path = "path" in (layer.get("source") or {})
    if "data" in layer and gives_path:
        raise ValueError("data and source.path both say where the pictures are; write one of them")
    if "data" in layer and base.get("source"):
        base["source"] = {key: item for key, item in base["source"].items() if key != "path"}
    if gives_path:
        base.pop("data", None)
    merged = dict(base)
    for key, new in layer.items():
        old = base.get(key)
        if key == "probes" and new is None:
            merged[key] = {}
        elif key == "probes":
            merged[key] = (old or {}) | {name: _merge_part((old or {}).get(name), part) for name, part in new.items()}
        else:
            merged[key] = _merge_part(old, new) if key in PARTS else _deep(old, new)
    return merged


def _named(layer: Layer) -> Layer:
    """The layer with every part a mapping, or None for one that is taken away."""
    named = {key: _part(key, item) if key in PARTS else item for key, item in layer.items()}
    if named.get("probes") is not None:
        probes = _part("probes", named["probes"]) or {}
        named["probes"] = {name: _part(f"probes.{name}", probe) for name, probe in probes.items()}
    return named


def _part(key: str, part: Any) -> Layer | None:
    if isinstance(part, str) and key != "probes":
        return {"name": part}
    if part is not None and not isinstance(part, dict):
        raise ValueError(f"{key}: expected a name or a mapping, not {json.dumps(part)}")
    return part


def _merge_part(base: Layer | None, new: Layer | None) -> Layer | None:
    """A part over its parent's: one that says what it is replaces it."""
    if new is None or "name" in new or "class_path" in new:
        return new
    return _deep(base or {}, new)


def _deep(base: Any, new: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(new, Mapping):
        return new
    return base | {key: _deep(base.get(key), item) for key, item in new.items()}
