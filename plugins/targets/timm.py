"""Any timm network as a frozen teacher: a transformer's tokens or a feature map of a convolutional network."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from ussl import weights as files
from ussl.hookspecs import hookimpl
from ussl.parts import Student, Target
from ussl.teachers import FrozenTeacher, Layer, MapNetwork, Norm, Point, TokenNetwork, build, load


class TimmTarget(FrozenTeacher):
    """Tokens of any frozen timm network: a transformer's, or a feature map of one stride.

    Args:
        model: timm's name of the network, with the tag of its weights, such as vit_small_patch14_dinov2.lvd142m.
        weights: a local file with its weights, in timm's form or one that timm converts; None = from the hub.
        pretrained: `false` = random weights (always the same ones), as a control.
        stride: of the feature map, for networks that have maps; None = the student's patch size.
        mean: of its input by channel; None = as timm states for these weights.
        std: as `mean`.
        layer: `last`, the number of a block (0 the first, -1 the last), or a list of numbers to average.
        point: tokens after the final norm (`post_norm`) or before it (`pre_norm`).
        norm: of each token: none, layernorm (no affine) or l2; whiten = each channel over all tokens so far.
        input_size: shorter side of its picture; by default such that its grid is the student's.
    """

    def __init__(
        self,
        student: Student,
        *,
        model: str,
        weights: Path | None = None,
        pretrained: bool = True,
        stride: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        layer: Layer = "last",
        point: Point = "post_norm",
        norm: Norm = "none",
        input_size: int | None = None,
    ) -> None:
        trunk = _flexible(model)
        if _has_tokens(trunk):
            if stride is not None:
                raise ValueError(f"stride has no effect: {model} is a transformer with tokens; leave stride out")
            network: TokenNetwork | MapNetwork = TokenNetwork(trunk, layer, point)
        else:
            if (layer, point) != ("last", "post_norm"):
                raise ValueError(f"layer and point have no effect: {model} has feature maps; choose one by stride")
            network = MapNetwork(trunk, student.encoder.patch if stride is None else stride)
        lineage = fill(trunk, model, weights, pretrained)
        statistics = trunk.pretrained_cfg
        super().__init__(
            student,
            network,
            mean=statistics["mean"] if mean is None else mean,
            std=statistics["std"] if std is None else std,
            lineage=lineage,
            norm=norm,
            input_size=input_size,
        )


def fill(trunk: Any, model: str, weights: Path | None, pretrained: bool = True) -> dict[str, Any]:
    """Give a timm network its weights, from a file or the hub; what they are. ValueError when it cannot be done."""
    config = trunk.pretrained_cfg
    if not pretrained:
        if weights is not None:
            raise ValueError("weights has no effect when pretrained is false; leave one of them out")
        sha256 = files.state_digest(trunk.state_dict())
        return {"name": model, "source": "random weights", "sha256": sha256, "licence": "none needed"}
    source, licence = str(weights), "not stated in the file"
    if weights is None:
        if not config.get("hf_hub_id"):
            raise ValueError(f"timm has no weights of {model} on the hub; set target.weights to a file with them")
        name = config.get("hf_hub_filename") or "model.safetensors"
        weights = files.from_hub(config["hf_hub_id"], name, "target.weights")
        source, licence = (
            f"https://huggingface.co/{config['hf_hub_id']}",
            config.get("license") or "not stated by timm",
        )
    load(trunk, _converted(trunk, files.read(weights)), str(weights))
    sha256 = files.digest(files.locate(weights))
    return {"name": model, "source": source, "sha256": sha256, "licence": licence}


def _flexible(model: str) -> Any:
    """The network without its classifier, taking pictures of any size where it can."""
    try:
        trunk = build(model, num_classes=0, dynamic_img_size=True)
    except TypeError:  # a network without that option
        trunk = build(model, num_classes=0)
    if not hasattr(trunk, "forward_intermediates"):
        raise ValueError(f"{model} gives neither tokens nor feature maps; choose another timm model")
    return trunk


def _has_tokens(trunk: Any) -> bool:
    """Whether the network keeps class and patch tokens apart from the picture's form to the end."""
    options = inspect.signature(trunk.forward_intermediates).parameters
    return "return_prefix_tokens" in options and hasattr(trunk, "patch_embed")


def _converted(trunk: Any, checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """A checkpoint under timm's names, without a classifier that the network lacks."""
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)
    state = state if convert is None else convert(state, trunk)
    own = trunk.state_dict()
    classifiers = trunk.pretrained_cfg["classifier"]
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers or ())
    extra = tuple(f"{name}." for name in classifiers)
    return {
        k: v.float() if v.is_floating_point() else v for k, v in state.items() if k in own or not k.startswith(extra)
    }


@hookimpl
def ussl_targets() -> dict[str, type[Target]]:
    """Offer timm networks as targets."""
    return {"timm": TimmTarget}
