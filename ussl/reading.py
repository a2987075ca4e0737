"""Weight files and folders: found, read without running what they hold, and named by digest."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_IN_FOLDERS = ("encoder/model.safetensors", "model.safetensors", "pytorch_model.bin")
_RESUMED = {"step", "recipe", "method", "optimizer"}  # what the checkpoints of ussl's own runs have
_HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath]  # what training scripts keep beside the tensors


def locate(path: str | Path) -> Path:
    """The weight file that `path` means: itself, or the file in an encoder, run or hub folder. ValueError = none."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    if any(path.glob("step-*.pt")):
        raise ValueError(f"{path} holds what a run resumes from, not an encoder: {_advice(path)}")
    raise ValueError(f"{path} holds no weights: a run or encoder folder has {' or '.join(_IN_FOLDERS[:2])}")


def beside(path: str | Path) -> dict[str, Any]:
    """The config.json that lies with a weight file; empty where there is none. ValueError = unreadable."""
    file = locate(path).parent / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): write the folder anew with `ussl export`") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a configuration: it should hold one JSON object")
    return config


def read(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """A checkpoint on the CPU, never running code it may hold. ValueError = missing, damaged or refused.

    mapped: leave the tensors on the disk until they are used, where the file allows it; damage then goes unseen.
    """
    file = locate(path)
    if not file.is_file():
        raise ValueError(f"no weight file {file}: give a .pth, .pt, .bin or .safetensors file or an encoder folder")
    checkpoint = _safetensors(file) if _is_safetensors(file) else _torch(file, mapped and zipfile.is_zipfile(file))
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{file} holds a {type(checkpoint).__name__}, not a dictionary of tensors")
    if checkpoint.keys() >= _RESUMED:
        raise ValueError(f"{file} is what a run resumes from, not an encoder: {_advice(file.parent)}")
    return checkpoint


def _advice(checkpoints: Path) -> str:
    """What to give in place of the folder in which a run keeps its checkpoints."""
    return f"give the run's folder{f' {checkpoints.parent}' if checkpoints.name == 'checkpoints' else ''}"


def _is_safetensors(file: Path) -> bool:
    """By its name, or by its start: the length of a JSON header, then the header."""
    if file.suffix == ".safetensors":
        return True
    with file.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({line(error)}): download or copy it again"
        ) from error


def _torch(file: Path, mapped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # how torch names a class or function that it would have to run
            reason = "holds pickled code, which is not run: save its state_dict() alone, or as .safetensors"
            raise ValueError(f"{file} {reason}") from error
        raise ValueError(f"{file} is not a PyTorch checkpoint, or is damaged: download or copy it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = f"is not a whole PyTorch checkpoint ({line(error)}): download or copy it again"
        raise ValueError(f"{file} {reason}") from error


def line(error: Exception) -> str:
    """The first line of a library's error, for a message of ours."""
    return str(error).strip().split("\n")[0][:250] or type(error).__name__


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, whatever their order and device."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
