"""The folder of a run: whether it may be used, what is written into it besides the training."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ussl import checkpoint

OURS = (
    *("checkpoints", "encoder", "encoder.onnx", "tensorboard", "snapshot", "report.html"),
    *("metrics.csv", "probes.csv", "refused.csv", "recipe.yaml", "environment.json"),
)
PACKAGES = ("ultrasound-ssl", "torch", "timm", "pytorch-lightning", "numpy", "pillow")

# what may change between a run and its continuation without changing what is trained; data and precision are compared
# as they turned out
FREE = (
    *(f"train.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "threads", "micro_batch")),
    *(f"train.{key}" for key in ("compile", "activation_checkpointing", "save_every", "keep", "max_refused")),
    "train.stop_on_collapse",
    *("train.precision", "loader.workers", "export", "plugins", "probes."),
    *(f"source.{key}" for key in ("path", "endpoint", "cache", "max_cache_gb")),  # where the pictures lie
)


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse, in one line, an `out` that is not this run's to use; nothing is changed."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: write a folder")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not names or resume:
        return
    if not overwrite:
        raise ValueError(
            f"--out {out} is not empty: --resume continues that run, --overwrite starts it again, "
            f"or write another --out"
        )
    ours = {"recipe.yaml", "environment.json"} <= names
    if not ours and names & set(OURS):
        raise ValueError(
            f"--out {out} is not a run of ussl, so --overwrite does not touch its {min(names & set(OURS))}: "
            f"write another --out"
        )


def take_folder(out: Path, fresh: bool) -> None:
    """Make `out` this run's: a fresh one replaces what an earlier run left there, and nothing else."""
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint.clear_unfinished(checkpoints)
    for name in OURS if fresh else ():
        path = out / name
        if path == checkpoints:
            checkpoint.remove(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def same_training(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to continue a run under a recipe that trains something else."""
    before, now = _flat(old), _flat(new)
    differing = [k for k in sorted(before.keys() & now.keys()) if before[k] != now[k] and not k.startswith(FREE)]
    if differing:
        told = "; ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differing[:4])
        raise ValueError(f"--resume continues a run as it was begun, but the recipe differs: {told}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, name + ".") if isinstance(value, Mapping) else {name: value})
    return flat


def environment(images: int, digest: str, weights: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a run depended on: versions, devices, git, data, licences of the weights it began from, and `more`."""
    import torch

    return more | {
        "command": " ".join(["ussl", *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [platform.processor()],
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
        "data": {"images": images, "sha256": digest},
        "weights": weights,
    }


def write(path: Path, text: str) -> None:
    """Replace a small file in one go, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(text.encode())
        checkpoint.sync(file)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one go."""
    write(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of a row table: the same images in the same order, with the same labels, wherever their folder lies."""
    total = hashlib.sha256()
    rows = list(rows)
    folders = {os.path.dirname(str(row["path"])) for row in rows}
    root = os.path.commonpath(folders) if folders and all(map(os.path.isabs, folders)) else ""
    for row in rows:
        told = ((key, cell) for key, cell in row.items() if cell is not None and key != "source")
        named = {key: str(cell).removeprefix(root) for key, cell in told}
        total.update(json.dumps(named, sort_keys=True).encode())
    return total.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the folder the command was given in, with + where files differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
