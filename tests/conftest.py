"""Shared by all tests: a clean environment, files in a temporary folder, and small plugins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("USSL_DATA", "USSL_DISABLE_PLUGINS", "USSL_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def write(tmp_path) -> Callable[[str, str], Path]:
    """write(name, text): a file under tmp_path."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    return write


@pytest.fixture
def install(write, tmp_path, monkeypatch) -> Callable[[str, str], Path]:
    """install(name, text): a distribution `name` 1.2 whose module of that name is a plugin."""

    def install(name: str, text: str) -> Path:
        write(f"site/{name}-1.2.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        write(f"site/{name}-1.2.dist-info/entry_points.txt", f"[ussl]\n{name} = {name}\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        sys.modules.pop(name, None)  # of another test
        return write(f"site/{name}.py", text)

    return install


@pytest.fixture(scope="session")
def ultrasound() -> Path:
    """The folder of real ultrasound pictures; skips where it is not there."""
    folder = ROOT.parent / "shared" / "data" / "ultrasound"
    if not folder.is_dir():
        pytest.skip(f"no pictures in {folder}")
    return folder
