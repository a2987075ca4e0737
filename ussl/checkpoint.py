"""Checkpoints that survive a kill, a full disk and a flipped byte.

A checkpoint is written to a temporary file in its own folder, synced, and renamed to `step-<step>-<digest>.pt`,
whose digest is the start of the content's SHA-256. `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ussl.errors import RunFailed

_NAME = re.compile(r"step-\d{8,}-[0-9a-f]{16}\.pt")


def step_of(path: Path) -> int:
    """The number of finished steps that a checkpoint's name gives."""
    return int(path.name.split("-")[1])


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    ours = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(ours, key=step_of, reverse=True)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove all but the last `keep`. RunFailed when it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            sync(file)
        path = folder / f"step-{step:08d}-{_digest(temporary)}.pt"
        os.replace(temporary, path)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise RunFailed(_unwritten(folder, step, error)) from error
    same = [old for old in saved(folder) if step_of(old) == step and old != path]
    for old in [*same, *[old for old in saved(folder) if old not in same][keep:]]:
        old.unlink()
    return path


def load(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, or None, and a line for each that was set aside as damaged."""
    lines: list[str] = []
    for path in saved(folder):
        if not path.stem.endswith(_digest(path)):
            aside = path.rename(path.with_suffix(".damaged"))
            lines.append(
                f"checkpoint {path.name} is damaged: its content does not match its digest; kept as {aside.name}"
            )
            continue
        try:
            return torch.load(path, map_location="cpu", weights_only=True), lines
        except Exception as error:  # the file is whole, so this is no reason to give it up for an older one
            raise RunFailed(f"checkpoint {path} is whole but cannot be read: {str(error).splitlines()[0]}") from error
    return None, lines


def remove(folder: Path) -> None:
    """Remove a run's checkpoints, and nothing else that lies there."""
    for path in [*saved(folder), *folder.glob("step-*.damaged"), *folder.glob(".writing-*")]:
        path.unlink()


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed save left behind."""
    for path in folder.glob(".writing-*"):
        path.unlink()


def sync(file: BinaryIO) -> None:
    """Force an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a rename inside `folder` to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _unwritten(folder: Path, step: int, error: Exception) -> str:
    left = saved(folder)
    intact = f"the one of step {step_of(left[0])} is intact" if left else "there is no earlier one"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
    return f"the checkpoint of step {step} could not be written to {folder} ({why}); {intact}: free space and --resume"
