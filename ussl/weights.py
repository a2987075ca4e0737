"""Pretrained weights: read safely, found on the hub, recognised, matched to a network and named by digest."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ussl.parts import Initialization

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_IN_FOLDERS = ("encoder/model.safetensors", "model.safetensors", "pytorch_model.bin")


def locate(path: str | Path) -> Path:
    """The weight file that `path` means: itself, or the file in an encoder, run or hub folder. ValueError = none."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
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


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint on the CPU, never running code it may hold. ValueError = missing, damaged or refused."""
    file = locate(path)
    if not file.is_file():
        raise ValueError(f"no weight file {file}: give a .pth, .pt, .bin or .safetensors file or an encoder folder")
    checkpoint = _safetensors(file) if _is_safetensors(file) else _torch(file)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{file} holds a {type(checkpoint).__name__}, not a dictionary of tensors")
    return checkpoint


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
            f"{file} is not a whole safetensors file ({_line(error)}): download or copy it again"
        ) from error


def _torch(file: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # how torch names a class or function that it would have to run
            reason = "holds pickled code, which is not run: save its state_dict() alone, or as .safetensors"
            raise ValueError(f"{file} {reason}") from error
        raise ValueError(f"{file} is not a PyTorch checkpoint, or is damaged: download or copy it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = f"is not a whole PyTorch checkpoint ({_line(error)}): download or copy it again"
        raise ValueError(f"{file} {reason}") from error


def _line(error: Exception) -> str:
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


def recognise(
    checkpoint: Mapping[str, Any], what: str, formats: Mapping[str, type[Initialization]] | None = None
) -> tuple[str, dict[str, Tensor]]:
    """The format of a checkpoint and the encoder's tensors in it; formats are those of the plugins by default.

    ValueError when no format, or more than one, knows the keys; `what` is the file as the user named it.
    """
    formats = _offered() if formats is None else formats
    known = {name: form for name, cls in formats.items() if (form := cls()).recognises(checkpoint)}
    if not known:
        keys = _few(map(str, checkpoint))
        raise ValueError(f"{what} is of no known format ({', '.join(sorted(formats))}); its keys are {keys}")
    if len(known) > 1:
        names = " and ".join(sorted(known))
        raise ValueError(f"{what} is recognised by {names}: turn one off with USSL_DISABLE_PLUGINS")
    ((name, form),) = known.items()
    return name, form.state(checkpoint)


def _offered() -> dict[str, type[Initialization]]:
    from ussl.plugins import Host

    return {offer.name: offer.cls for offer in Host().offers("initialization")}


@dataclass
class Report:
    """What of a file fitted a network."""

    what: str  # the file
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the network, not in the file
    reshaped: list[str] = field(default_factory=list)  # in both, of another shape, so not loaded
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the network

    @property
    def fraction(self) -> float:
        """Share of the network's tensors that were loaded."""
        return len(self.matched) / max(len(self.matched) + len(self.missing) + len(self.reshaped), 1)

    def lines(self) -> list[str]:
        """The report in a few lines to print."""
        count = len(self.matched) + len(self.missing) + len(self.reshaped)
        return [f"weights {self.what}: {len(self.matched)} of {count} tensors loaded", *self._rest()]

    def _rest(self) -> list[str]:
        kinds = {
            "missing": self.missing,
            "of another shape, not loaded": self.reshaped,
            "unexpected, not used": self.unexpected,
        }
        return [f"{kind}: {_few(names)}" for kind, names in kinds.items() if names]


def match(module: nn.Module, state: Mapping[str, Tensor], minimum: float, what: str) -> Report:
    """Copy the tensors of `state` that fit by name and shape into `module`, which changes only if enough do.

    ValueError when less than the fraction `minimum` of the module's tensors fit.
    """
    report, own = Report(what), module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} in the file, {tuple(tensor.shape)} here"
            report.reshaped.append(f"{name} ({shapes})")
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in own]
    if report.fraction < minimum:
        problem = f"only {len(report.matched)} of {len(own)} tensors match, below init_matched {minimum}"
        raise ValueError("; ".join([f"{what} does not fit this network: {problem}", *report._rest()]))
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def cached(repo: str, filename: str) -> Path | None:
    """A file of a Hugging Face repository where it has been downloaded before, without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename)
    return Path(found) if isinstance(found, str) else None


def from_hub(repo: str, filename: str, setting: str) -> Path:
    """A file of a Hugging Face repository, from the cache where it is there; `setting` is the option for a local one.

    ValueError, within seconds, when the hub cannot be reached: what to download, from where, and what takes it.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.utils import get_session

    if (file := cached(repo, filename)) is not None:
        return file
    try:
        # One try: the library's own download repeats an unreachable hub for half a minute.
        answer = get_session().head(hf_hub_url(repo, filename), timeout=10)
        if answer.status_code >= 400:
            raise OSError(f"status {answer.status_code}")
        return Path(hf_hub_download(repo, filename))
    except Exception as error:  # each release of the library raises other classes
        page = f"https://huggingface.co/{repo}"
        advice = f"download it on a machine that can and set {setting} to that file"
        raise ValueError(f"cannot fetch {filename} from {page} ({_line(error)}): {advice}") from error


def timm_config(name: str) -> Any | None:
    """timm's offline entry on pretrained weights `name`, e.g. vit_base_patch16_224.mae; None = no such weights."""
    import timm

    return timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None


def timm_model(name: str, setting: str, **options: Any) -> tuple[nn.Module, Path]:
    """timm's pretrained model `name` without its head, and the file it was read from. ValueError as `from_hub`."""
    import timm

    config = timm_config(name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no pretrained weights {name!r} on the hub: set {setting} to a file")
    file = from_hub(config.hf_hub_id, _filename(config), setting)
    overlay: dict[str, Any] = {"file": str(file), "custom_load": False}
    return timm.create_model(name, True, pretrained_cfg_overlay=overlay, num_classes=0, **options), file


def _filename(config: Any) -> str:
    return config.hf_hub_filename or "model.safetensors"


def origin(init: str | Path, formats: Mapping[str, type[Initialization]] | None = None) -> dict[str, Any]:
    """Name, source, sha256 and licence of the weights that `init` names, without the hub; None = not known here.

    The licence is what timm or the config.json beside the file says, else that of the checkpoint's format.
    """
    config = timm_config(str(init))
    if config is None:
        file: Path | None = locate(init)
        source, licence = str(file), _licence(init, formats)
    else:
        file = cached(config.hf_hub_id, _filename(config)) if config.hf_hub_id else None
        source, licence = f"https://huggingface.co/{config.hf_hub_id}", config.license
    sha256 = digest(file) if file is not None and file.is_file() else None
    return {"name": str(init), "source": source, "sha256": sha256, "licence": licence}


def _licence(init: str | Path, formats: Mapping[str, type[Initialization]] | None) -> str | None:
    config = beside(init)
    said = config.get("pretrained_cfg", {}).get("license")
    if said or "ussl" in config:  # weights trained here have the licences of their ancestors
        return said
    return _known(init, formats).licence if locate(init).is_file() else None


def lineage(init: str | Path, formats: Mapping[str, type[Initialization]] | None = None) -> list[dict[str, Any]]:
    """The weights that `init` names, as `origin` describes them, and before what those were trained from.

    Where `init` is a run or an encoder folder, or a file in one, the entries that its config.json holds follow.
    formats: the checkpoint formats on offer; None = those of the installed plugins.
    """
    entries = [origin(init, formats)]
    if timm_config(str(init)) is None:
        entries += beside(init).get("ussl", {}).get("weights", [])
    return [entry for i, entry in enumerate(entries) if entry not in entries[:i]]


def normalisation(init: str | Path | None) -> Statistics:
    """Mean and std of the images that weights were trained on, without the hub; ImageNet's unless they say otherwise.

    `init` is a timm name, or a weight file or folder with or without a config.json beside it. ValueError = neither.
    """
    if init is None:
        return IMAGENET
    if (config := timm_config(str(init))) is not None:
        return tuple(config.mean), tuple(config.std)
    if not locate(init).is_file():
        raise ValueError(
            f"no weight file and no pretrained timm model is called {str(init)!r}{_suggestion(str(init))}"
        )
    known = beside(init).get("pretrained_cfg", {})
    return tuple(known.get("mean", IMAGENET[0])), tuple(known.get("std", IMAGENET[1]))


def _suggestion(name: str) -> str:
    import timm

    close = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=1)
    return f": did you mean {close[0]}?" if close else ""
