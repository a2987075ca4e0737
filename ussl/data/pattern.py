"""Patterns that say what a picture's path means: `{organ}/{label}/{patient}_{view}.png`."""

from __future__ import annotations

import os
import re

from ussl.data import manifest
from ussl.data.folders import PICTURES, extension

_TOKEN = re.compile(r"(?P<field>\{[^{}]*\})|(?P<levels>\*\*/)|(?P<any>\*)|(?P<brace>[{}])|(?P<text>[^{}*]+)")
_WHOLE = (".{ext}", ".{extension}", ".*")  # ends of a pattern that is about the file's name with its extension
_TAKEN = frozenset({"path", "frame", "reader", "group_kind", "rejected", *manifest.LAST})  # columns with other meaning


class Pattern:
    """A path below a folder, with fields in it.

    `{name}` is a field: one or more characters but no slash, as few as will do from the left, so that `{a}_{b}` reads
    x_y_z as x and y_z. `*` is anything within a level, `**/` any number of levels, all else is itself. A pattern that
    ends in a picture's extension asks for it, in any letter case; one that does not takes pictures of every kind.

    Raises:
        ValueError: a field without a proper name, of a name that is taken or named twice; two fields in a row;
            braces or stars that are no pattern; no field at all.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        body = text.removeprefix("./")
        body = f"{body}/*" if body == "**" or body.endswith("/**") else body
        self.end = extension(body) if extension(body) in PICTURES else ""
        self.whole = body.endswith(_WHOLE)
        self._check(body)
        body = body[: len(body) - len(self.end)]
        self.fields = _fields(body)
        self._shortest, self._longest = (re.compile(_expression(body, lazy), re.DOTALL) for lazy in ("?", ""))

    def match(self, path: str) -> dict[str, str] | None:
        """What the fields are in `path`, which lies below the folder and has slashes; None = it is another path."""
        return self._groups(self._shortest, path)

    def ambiguous(self, path: str) -> bool:
        """Whether a path that matches could be read in another way, too."""
        return self._groups(self._longest, path) != self.match(path)

    def _groups(self, expression: re.Pattern[str], path: str) -> dict[str, str] | None:
        if self.end and extension(path) != self.end:
            return None
        found = expression.fullmatch(path if self.whole else os.path.splitext(path)[0])
        return found.groupdict() if found else None

    def _check(self, body: str) -> None:
        if os.path.isabs(body):
            raise self._refusal("it is about paths below the folder, so write it without a slash at its start")
        fields = _fields(body)
        if not fields:
            raise self._refusal("it has no field")
        for name in fields:
            self._check_name(name, fields)
        if "}{" in body:
            raise self._refusal("two fields need something between them")
        last = "/"
        for token in _TOKEN.finditer(body):
            if token["brace"]:
                raise self._refusal(f"{token['brace']!r} without its other half; a field is {{name}}")
            if (token["levels"] and not last.endswith("/")) or (token["any"] and last == "*"):
                raise self._refusal("`**/`, any number of levels, stands at the start or after a slash")
            last = token[0]

    def _check_name(self, name: str, fields: list[str]) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            hint = re.sub(r"\W+", "_", name.split(":")[0].lower()).strip("_0123456789") or "view"
            raise self._refusal(f"a field's name is small letters, digits and _: {{{hint}}}, not {{{name}}}")
        if fields.count(name) > 1:
            raise self._refusal(f"{{{name}}} is in it twice")
        if name in _TAKEN or name.startswith(manifest.FILES):
            raise self._refusal(f"`{name}` is a column that `ussl data index` fills itself; name the field otherwise")

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"pattern {self.text!r}: {reason}")


def _fields(body: str) -> list[str]:
    return [token["field"][1:-1] for token in _TOKEN.finditer(body) if token["field"]]


def _expression(body: str, lazy: str) -> str:
    """A regular expression of `body`; `lazy` "?" lets every part take as little as will do, "" as much."""
    parts = []
    for token in _TOKEN.finditer(body):
        if token["field"]:
            parts.append(f"(?P<{token['field'][1:-1]}>[^/]+{lazy})")
        elif token["levels"]:
            parts.append(f"(?:[^/]+/)*{lazy}")
        else:
            parts.append(f"[^/]*{lazy}" if token["any"] else re.escape(token[0]))
    return "".join(parts)
