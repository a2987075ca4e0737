"""BiomedCLIP as a frozen teacher: the target of URFM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ussl import weights as files
from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target
from ussl.teachers import FrozenTeacher, Layer, Norm, Point, TokenNetwork, build, load
from ussl_plugins.targets.clip import MEAN, STD

HUB = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")


class BiomedClipTarget(FrozenTeacher):
    """Tokens of BiomedCLIP's vision tower, frozen (URFM's target); its text tower is never built.

    Zhang et al. 2023, arXiv:2303.00915. Other CLIP models with a timm transformer in open_clip's hub layout work too.

    Args:
        weights: a local weight file, or a folder with open_clip_config.json and open_clip_pytorch_model.bin or
            .safetensors; a file is read by the configuration beside it, or else as BiomedCLIP. None = from the hub.
        hub: name on the Hugging Face hub.
        layer: `last`, the number of a block (0 the first, -1 the last), or a list of numbers to average.
        point: tokens after the final norm (`post_norm`), before it, or `projected` into the space shared with text.
        norm: of each token: none, layernorm (no affine) or l2; whiten = each channel over all tokens so far.
        input_size: shorter side of its picture; by default such that its grid is the student's.
    """

    def __init__(
        self,
        student: Student,
        *,
        weights: Path | None = None,
        hub: str = HUB,
        layer: Layer = "last",
        point: Point = "post_norm",
        norm: Norm = "none",
        input_size: int | None = None,
    ) -> None:
        if weights is not None and hub != HUB:
            raise ValueError("hub has no effect when weights are given; leave one of them out")
        release = _from_hub(hub) if weights is None else _local(Path(weights))
        trunk, projection = _tower(release)
        network = TokenNetwork(trunk, layer, point, projection)
        mean, std = (tuple(release.preprocess.get(k, v)) for k, v in (("mean", MEAN), ("std", STD)))
        super().__init__(
            student, network, mean=mean, std=std, lineage=release.lineage(), norm=norm, input_size=input_size
        )


@dataclass(frozen=True)
class _Release:
    """A CLIP model in open_clip's hub layout."""

    file: Path
    source: str
    config: dict[str, Any]

    @property
    def model(self) -> str:
        """timm's name of the vision tower."""
        return self.config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name", "vit_base_patch16_224")

    @property
    def preprocess(self) -> dict[str, Any]:
        return self.config.get("preprocess_cfg", {})

    def lineage(self) -> dict[str, Any]:
        name = "biomedclip" if HUB in self.source else Path(self.source).name
        return {"name": name, "source": self.source, "sha256": files.digest(self.file), "licence": "MIT"}


def _from_hub(hub: str) -> _Release:
    file = files.from_hub(hub, WEIGHTS[0], "target.weights")
    config = files.from_hub(hub, CONFIG, "target.weights")
    return _Release(file, f"https://huggingface.co/{hub}", json.loads(config.read_text()))


def _local(path: Path) -> _Release:
    file = path
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found or not (path / CONFIG).is_file():
            raise ValueError(f"{path} lacks {CONFIG} or {' or '.join(WEIGHTS[:2])}, as downloaded from the hub")
        file = found[0]
    config = file.parent / CONFIG
    return _Release(file, str(path), json.loads(config.read_text()) if config.is_file() else {})


def _tower(release: _Release) -> tuple[nn.Module, nn.Module | None]:
    """The vision tower and its projection to the space shared with text, with their weights."""
    checkpoint = files.read(release.file)
    state = checkpoint.get("state_dict", checkpoint)
    state = {k.removeprefix("module."): v.float() for k, v in state.items() if "visual." in k}
    trunk_state = {k.removeprefix("visual.trunk."): v for k, v in state.items() if k.startswith("visual.trunk.")}
    if not trunk_state:
        raise ValueError(f"{release.file} has no visual.trunk weights; for a plain timm file write target: timm")
    trunk = build(release.model, num_classes=0, dynamic_img_size=True)
    load(trunk, trunk_state, f"{release.file} (visual.trunk)")
    head = {k: v for k, v in state.items() if not k.startswith("visual.trunk.")}
    if not head:
        return trunk, None
    width = head["visual.head.proj.weight"].shape[0] if "visual.head.proj.weight" in head else 0
    projection = nn.Linear(trunk.num_features, width, bias="visual.head.proj.bias" in head)
    head = {k.removeprefix("visual.head.proj."): v for k, v in head.items()}
    load(projection, head, f"{release.file} (visual.head)")
    return trunk, projection


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer BiomedCLIP as the target."""
    return {"biomedclip": BiomedClipTarget}
