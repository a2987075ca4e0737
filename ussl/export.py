"""Encoders out of a run: the folder that timm loads, and copies in other formats."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ussl import weights
from ussl.checkpoint import sync, sync_folder
from ussl.errors import RunFailed
from ussl.loaded import Loaded, encoder_folder, image_size, load, rebuild
from ussl.parts import Encoder

__all__ = ["Loaded", "export_run", "load", "write_encoder"]

ONE_FILE = 1.8e9  # bytes of weights that an ONNX file can hold; larger ones lie beside it


def write_encoder(encoder: Encoder, folder: Path, extra: dict[str, Any] | None = None) -> None:
    """Write model.safetensors and config.json, each whole or not at all; equal weights give equal bytes.

    Where the encoder is a timm network, `timm.create_model(f"local-dir:{folder}", pretrained=True)` is it.
    `extra` becomes the section "ussl" of the configuration: {"encoder": {"name": ..., "options": {...}}}, which
    `load` needs where there is no timm network, and whatever else is worth knowing about the weights. What pictures
    must undergo before this encoder, its `preprocess`, is written there too; timm itself does not do it.
    RunFailed when the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    has_timm = type(encoder).to_timm is not Encoder.to_timm
    state, config = encoder.to_timm() if has_timm else (encoder.state_dict(), {})
    state = {name: _plain(state[name]) for name in sorted(state)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.safetensors"
        _replace(model, lambda file: save_file(state, file, metadata={"format": "pt"}))
        known = {"preprocess": dict(encoder.preprocess)} if encoder.preprocess else {}
        config["ussl"] = {**(extra or {}), **known, "sha256": weights.digest(model)}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        _replace(folder / "config.json", lambda file: file.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:  # the latter from a full disk
        raise RunFailed(f"the encoder could not be written to {folder}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, in memory of its own, and of 32 bits where it is a float."""
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensor.float() if tensor.is_floating_point() else tensor


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a temporary file beside `file`, and put it in place once it is on the disk."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        mask = os.umask(0)  # it can be asked for only by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # safetensors writes a file that only its owner may read
        with temporary.open("rb+") as stream:
            sync(stream)
        os.replace(temporary, file)
        sync_folder(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def export_run(run: str | Path, to: Literal["timm", "onnx"], out: str | Path | None = None) -> Path:
    """Write a run's encoder for others to use; what was written.

    timm: a copy of the encoder folder at `out`; without `out`, the run's own, which is one already.
    onnx: `encoder.onnx` in the folder `out`, or at `out` if it ends in .onnx, else in the run; input `images`
    (B, 3, S, S) in [0, 1], outputs `tokens` (B, N, D) and `embedding` (B, D). Images must have undergone the
    encoder's `preprocess` before they were resized to S; the file says it, as JSON, in its metadata `preprocess`.
    ValueError = not a finished run, or packages are missing; RunFailed = it cannot be written.
    """
    if to not in ("timm", "onnx"):
        raise ValueError(f"an encoder is exported to timm or onnx, not to {to!r}")
    run, out = Path(run), None if out is None else Path(out)
    folder = encoder_folder(run)
    config = weights.beside(folder)
    if "architecture" not in config and to == "timm":
        raise ValueError(f"the encoder in {folder} has no timm equivalent: export it to onnx, or use ussl.load")
    try:
        return _copy(folder, out) if to == "timm" else _to_onnx(folder, config, _onnx_file(run, out))
    except OSError as error:
        raise RunFailed(f"{run} could not be exported: {_reason(error)}") from error


def _copy(folder: Path, out: Path | None) -> Path:
    if out is None or out.resolve() == folder.resolve():
        return folder
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder to export to")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        _replace(out / name, partial(shutil.copyfile, folder / name))
    return out


def _onnx_file(run: Path, out: Path | None) -> Path:
    out = run if out is None else out
    return out if out.suffix == ".onnx" else out / "encoder.onnx"


class _Graph(nn.Module):
    """What an ONNX file computes."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the encoder has of `tokens` (B, N, D) and `embedding` (B, D)."""
        tokens = self.encoder(images)
        named = {"tokens": tokens.patches, "embedding": tokens.pooled}
        return {name: part[:, 0] for name, part in named.items() if part is not None}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs(images).values())


def _to_onnx(folder: Path, config: dict[str, Any], file: Path) -> Path:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        reason = f'export to onnx needs {error.name}: pip install "ultrasound-ssl[onnx]"'
        raise ValueError(reason) from error
    encoder = rebuild(folder, config, any_size=False)
    program = _program(encoder, image_size(encoder, config))
    program.model.metadata_props["preprocess"] = json.dumps(dict(encoder.preprocess))
    large = sum(p.nbytes for p in encoder.parameters()) > ONE_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".onnx-") as place:
        program.save(Path(place) / file.name, external_data=large)
        for written in sorted(Path(place).iterdir(), reverse=True):  # weights beside the graph come before it
            _replace(file.with_name(written.name), partial(os.replace, written))
    return file


def _program(encoder: Encoder, side: int) -> torch.onnx.ONNXProgram:
    """The graph of an encoder for any number of images of `side` x `side`."""
    graph, images = _Graph(encoder).eval(), torch.rand(2, 3, side, side)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own, on its way through torch
        program = torch.onnx.export(
            graph,
            (images,),
            input_names=["images"],
            output_names=list(graph.outputs(images)),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is when no file is given
    return program
