"""What is installed from a wheel is what the source tree is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SHIPPED = ("ussl", "plugins", "recipes")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The python of an environment that holds the wheel, with this environment's libraries behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, tree], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    # .pth files in there are not followed, so that the editable install stays out of sight
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def ussl(python: Path | str, cwd: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-m", "ussl.cli", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def listed(python: Path | str, cwd: Path) -> list[dict[str, str]]:
    found = json.loads(ussl(python, cwd, "plugins", "--json"))
    assert found["broken"] == []
    return sorted(found["plugins"], key=lambda entry: (entry["kind"], entry["name"]))


def test_the_wheel_is_what_runs(installed, tmp_path):
    command = [installed, "-c", "import ussl, ussl_plugins, ussl_recipes as r; print(ussl.__file__, r.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for file in done.stdout.split():
        assert Path(file).is_relative_to(installed.parents[1])


def test_the_wheel_offers_the_plugins_of_the_source_tree(installed, tmp_path):
    assert listed(installed, tmp_path) == listed(sys.executable, tmp_path)


def test_the_wheel_ships_the_recipes_of_the_source_tree(installed, tmp_path):
    names = [entry["name"] for entry in json.loads(ussl(installed, tmp_path, "recipes", "--json"))["recipes"]]
    folder = ROOT / "recipes"
    files = [path for path in folder.rglob("*.yaml") if not path.name.startswith("_")]
    assert sorted(names) == sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)
    assert names


def test_every_file_is_in_the_wheel(installed):
    (site,) = installed.parents[1].glob("lib/python*/site-packages")
    for folder, package in (("ussl", "ussl"), ("plugins", "ussl_plugins"), ("recipes", "ussl_recipes")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (site / package / path.relative_to(ROOT / folder)).is_file(), path


def test_every_folder_with_modules_is_a_listed_package():
    written = PROJECT["tool"]["setuptools"]["packages"]
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    for package, place in places.items():
        for folder in {path.parent for path in (ROOT / place).rglob("*.py")}:
            name = ".".join((package, *folder.relative_to(ROOT / place).parts))
            assert name in written, f"add {name} to packages in pyproject.toml"


def test_every_plugin_file_has_an_entry_point():
    points = set(PROJECT["project"]["entry-points"]["ussl"].values())
    files = [path for path in (ROOT / "plugins").rglob("*.py") if "@hookimpl" in path.read_text()]
    for path in files:
        module = ".".join(("ussl_plugins", *path.relative_to(ROOT / "plugins").with_suffix("").parts))
        assert module in points, f'add {path.stem} = "{module}" to the entry points in pyproject.toml'
    assert len(files) == len(points)
