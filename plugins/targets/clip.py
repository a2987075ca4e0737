"""OpenAI's CLIP as a frozen teacher."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target
from ussl.teachers import FrozenTeacher, Layer, Norm, Point, TokenNetwork, build
from ussl_plugins.targets.timm import fill

MODEL = "vit_base_patch16_clip_quickgelu_224.openai"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipTarget(FrozenTeacher):
    """Tokens of OpenAI's CLIP ViT-B/16, frozen: its vision tower with QuickGELU and CLIP's own mean and std.

    Radford et al. 2021, arXiv:2103.00020.

    Args:
        weights: a local file with its weights, in timm's or open_clip's form; None = timm's from the hub.
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
