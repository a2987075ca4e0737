"""Pretrained weights: what a file's format tells of it, and what timm, its hub and runs of ussl hold."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ussl.matching import Report, few, match
from ussl.parts import Initialization
from ussl.reading import beside, digest, line, locate, read, state_digest

__all__ = [
    "CONTAINERS",
    "IMAGENET",
    "WRAPPERS",
    "Report",
    "Statistics",
    "beside",
    "cached",
    "digest",
    "from_hub",
    "lineage",
    "locate",
    "match",
    "normalisation",
    "origin",
    "read",
    "recognise",
    "state_digest",
    "timm_config",
    "timm_model",
    "unwrapped",
]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONTAINERS = (  # entries that hold a network's tensors, in order of preference: averaged weights are better
    *("ema_state_dict", "state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state_dict"),
)
WRAPPERS = frozenset({"module", "model", "net", "encoder", "backbone", "_orig_mod"})  # names put before an encoder's


def unwrapped(
    checkpoint: Mapping[str, Any],
    mark: str,
    containers: Iterable[str] = CONTAINERS,
    wrappers: Collection[str] = WRAPPERS,
) -> dict[str, Any]:
    """The entries of a checkpoint that lie beside the one called `mark`, without the names of what held them.

    For formats to find an encoder with: `unwrapped({"state_dict": {"module.a": x, "module.b": y}}, "b")` is
    {"a": x, "b": y}. Empty where there is no `mark`.

    Args:
        checkpoint: as it was read.
        mark: name of a tensor that the encoder has for certain.
        containers: entries of the checkpoint to look in before the checkpoint itself, in this order.
        wrappers: names of modules that may stand before the mark.
    """
    inner = [checkpoint[name] for name in containers if isinstance(checkpoint.get(name), Mapping)]
    for state in (*inner, checkpoint):
        for name in map(str, state):
            *before, prefix = name.removesuffix(mark).split(".")
            if name.endswith(mark) and not prefix and set(before) <= set(wrappers):
                cut = len(name) - len(mark)
                return {str(key)[cut:]: held for key, held in state.items() if str(key).startswith(name[:cut])}
    return {}


def recognise(
    checkpoint: Mapping[str, Any], what: str, formats: Mapping[str, type[Initialization]] | None = None
) -> tuple[str, dict[str, Tensor]]:
    """The format of a checkpoint and the encoder's tensors in it; formats are those of the plugins by default.

    A file beside a config.json that names timm's architecture has timm's names: where no format knows it, it is
    taken as it is. ValueError when no format, or more than one, knows the keys, or when the one that does cannot
    use them; `what` is the file as the user named it.
    """
    formats = _offered() if formats is None else formats
    known = _knowing(checkpoint, formats)
    if not known and "architecture" in beside(what):
        return "timm", {name: tensor for name, tensor in checkpoint.items() if isinstance(tensor, Tensor)}
    if not known:
        reason = f"is of no known format ({', '.join(sorted(formats))}); its keys are {_keys(checkpoint)}"
        raise ValueError(f"{what} {reason}: save the encoder's state_dict() under timm's names")
    if len(known) > 1:
        names = " and ".join(sorted(known))
        raise ValueError(f"{what} is recognised by {names}: turn one off with USSL_DISABLE_PLUGINS")
    ((name, form),) = known.items()
    try:
        return name, form.state(checkpoint)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _knowing(checkpoint: Mapping[str, Any], formats: Mapping[str, type[Initialization]]) -> dict[str, Initialization]:
    """The formats that recognise a checkpoint."""
    return {name: form for name, cls in formats.items() if (form := cls()).recognises(checkpoint)}


def _keys(checkpoint: Mapping[str, Any]) -> str:
    """A few keys of a checkpoint, and of what it holds."""
    inner = {name: f" ({few(map(str, held), 2)})" for name, held in checkpoint.items() if isinstance(held, Mapping)}
    return few(f"{name}{inner.get(name, '')}" for name in checkpoint)


def _offered() -> dict[str, type[Initialization]]:
    from ussl.plugins import Host

    return {offer.name: offer.cls for offer in Host().offers("initialization")}


@dataclass(frozen=True)
class _Known:
    """What the format of a file tells of the weights in it."""

    licence: str | None = None
    statistics: Statistics | None = None


def _known(init: str | Path, formats: Mapping[str, type[Initialization]] | None) -> _Known:
    file = locate(init)
    found = file.stat()
    offered = _offered() if formats is None else formats
    return _facts(file, found.st_mtime_ns, found.st_size, tuple(offered.items()))


@lru_cache(maxsize=8)
def _facts(file: Path, changed: int, size: int, formats: tuple[tuple[str, type[Initialization]], ...]) -> _Known:
    """The facts of a file that one format recognises; time and size are there to notice that the file changed."""
    checkpoint = read(file, mapped=True)
    known = _knowing(checkpoint, dict(formats))
    if len(known) != 1:
        return _Known()
    (form,) = known.values()
    return _Known(form.licence(checkpoint), form.statistics(checkpoint))


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
        raise ValueError(f"cannot fetch {filename} from {page} ({line(error)}): {advice}") from error


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


def normalisation(init: str | Path | None, formats: Mapping[str, type[Initialization]] | None = None) -> Statistics:
    """Mean and std of the images that weights were trained on, without the hub.

    What timm or the config.json beside the file says, else what the checkpoint's format is known for, else
    ImageNet's. `init` is a timm name, or a weight file or folder. ValueError = neither, or a file that cannot be read.
    formats: the checkpoint formats on offer; None = those of the installed plugins.
    """
    if init is None:
        return IMAGENET
    if (config := timm_config(str(init))) is not None:
        return tuple(config.mean), tuple(config.std)
    if not locate(init).is_file():
        raise ValueError(
            f"no weight file and no pretrained timm model is called {str(init)!r}{_suggestion(str(init))}"
        )
    said = beside(init).get("pretrained_cfg", {})
    if "mean" in said and "std" in said:
        return tuple(said["mean"]), tuple(said["std"])
    return _known(init, formats).statistics or IMAGENET


def _suggestion(name: str) -> str:
    import timm

    close = difflib.get_close_matches(name, timm.list_models(pretrained=True), n=1)
    return f": did you mean {close[0]}?" if close else ""
