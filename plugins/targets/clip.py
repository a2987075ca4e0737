"""OpenAI's CLIP as a frozen teacher."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ussl_plugins.targets.timm import fill

from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target
from ussl.teachers import FrozenTeacher, Layer, Norm, Point, TokenNetwork, build

MODEL = "vit_base_patch16_clip_quickgelu_224.openai"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipTarget(FrozenTeacher):
    """Tokens of OpenAI's CLIP ViT-B/16, frozen: its vision tower with QuickGELU and CLIP's own mean and std.

    Radford et al. 2021, arXiv:2103.00020.

    Args:
        weights: a local file with its weights, in timm's or open_clip's form; None = timm's from the hub.
        layer, point, norm, input_size: as in ussl.teachers: which blocks' tokens, where (`projected`: in the 512
            channels shared with text), normalised how, of which picture size.
    """

    def __init__(
        self,
        student: Student,
        *,
        weights: Path | None = None,
        layer: Layer = "last",
        point: Point = "post_norm",
        norm: Norm = "none",
        input_size: int | None = None,
    ) -> None:
        if weights is not None:
            _refuse_archive(Path(weights))
        trunk = build(MODEL, dynamic_img_size=True)  # its "classifier" is the projection
        network = TokenNetwork(trunk, layer, point, trunk.head)
        lineage = {**fill(trunk, MODEL, weights), "licence": "MIT"}
        super().__init__(student, network, mean=MEAN, std=STD, lineage=lineage, norm=norm, input_size=input_size)


def _refuse_archive(file: Path) -> None:
    """ValueError for a program: OpenAI released CLIP as TorchScript, which would have to run to be read."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
            raise ValueError(
                f"{file} is a TorchScript archive; set target.weights to the same weights as tensors: "
                "model.safetensors of https://huggingface.co/timm/vit_base_patch16_clip_224.openai"
            )


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer CLIP as the target."""
    return {"clip": ClipTarget}
