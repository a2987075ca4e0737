"""The documentation says what the code does."""

from __future__ import annotations

import inspect
import re

import pytest
from conftest import ROOT

from ussl import hookspecs
from ussl.parts import Part
from ussl.plugins import HOOKS, LEADING, Host
from ussl.testing import check_masking

SECTIONS = dict(re.findall(r"## (\w+)\n\n(.+?)(?=\n## |\Z)", (ROOT / "docs/hooks.md").read_text(), re.DOTALL))
TUTORIAL = (ROOT / "docs/plugins.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def call(name: str, function) -> str:
    """`forward(image, mask=None)`."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    words = (p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
    return f"`{name}({', '.join(words)})`"


def methods(cls: type) -> dict[str, object]:
    return {name: item for name, item in vars(cls).items() if inspect.isfunction(item) and name[0] != "_"}


def test_every_hook_has_a_section_and_no_other_has():
    assert [name for name in SECTIONS if name.startswith("ussl_")] == list(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hooks_section_says_what_its_specification_says(hook):
    base, section = HOOKS[hook], SECTIONS[hook]
    function = getattr(hookspecs, hook)
    leading = "".join(f"{name}, " for name in LEADING.get(base.__name__.lower(), ()))
    assert section.startswith(f"{function.__doc__} Returns `{function.__annotations__['return']}`.\n")
    assert f"`{base.__name__}({leading}*, options)`" in section
    told = set(re.findall(r"(?:must|may) define (`.+?`)", section))
    assert told == {call(name, method) for name, method in methods(base).items()}
    for name, method in methods(base).items():
        must = getattr(method, "__isabstractmethod__", False)
        assert f"{'must' if must else 'may'} define {call(name, method)}" in section
    for attribute in inspect.get_annotations(base):
        assert f"`{attribute}`" in section


def test_the_methods_of_all_networks_are_told():
    told = (ROOT / "docs/hooks.md").read_text().partition("## What networks share")[2]
    for name, method in methods(Part).items():
        assert call(name, method) in told


def test_the_tutorials_part_is_under_20_lines_and_keeps_the_contract(write):
    code = blocks("python")[0]
    assert sum(1 for line in code.splitlines() if line.strip()) < 20
    host = Host([write("shadows.py", code)])
    assert host.faults() == []
    check_masking(host.get("masking", "shadows"), ratio=0.75)


def test_the_tutorials_package_is_the_example():
    (toml,) = blocks("toml")
    assert toml in (ROOT / "examples/ussl-hello/pyproject.toml").read_text()


def test_every_setting_is_explained():
    from dataclasses import fields

    from ussl.layers import PARTS
    from ussl.settings import Loader, Top, Train

    text = (ROOT / "docs" / "recipes.md").read_text()
    for name in [*(item.name for cls in (Top, Train, Loader) for item in fields(cls)), *PARTS, "probes"]:
        assert f"`{name}`" in text, name
