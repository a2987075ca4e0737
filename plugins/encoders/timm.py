"""Any timm network as an encoder: convolutional ones foremost, with batch norm over all devices."""

from __future__ import annotations

import copy
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ussl import weights
from ussl.distributed import BatchNorm, synchronised
from ussl.hookspecs import hookimpl
from ussl.parts import Encoder, Initialization, Mask, Tokens
from ussl.starting import NetworkEncoder, Triple


class TimmEncoder(NetworkEncoder):
    """Any timm network by name: ResNets, ConvNeXts, ...; its last feature map gives the patches' tokens.

    The image feature is timm's own, mostly the average of the map. Such networks cannot leave patches out, only see
    them changed. Initial weights are timm's; batch norms take the statistics of all devices.
    """

    called = "timm"
    accepts = frozenset({"fill"})

    def __init__(
        self,
        *,
        model: str,
        image_size: int | None = None,
        drop_path: float = 0.0,
        init: str | Path | None = None,
        init_matched: float = 0.9,
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        """Build the network with random weights.

        Args:
            model: timm's name of the network without a tag of weights, such as resnet50, resnet101 or convnext_tiny.
            image_size: side in pixels of the images it is for; None = timm's for this network.
            drop_path: stochastic depth of the last block.
            init: weights to start from: a timm name (resnet50.a1_in1k), a file, an encoder or a run folder.
            init_matched: least share of this network's tensors that `init` must hold.
            mean: of the images in [0, 1] by channel; what `init` was trained with, else ImageNet's, by default.
            std: as `mean`.
        """
        super().__init__(init=init, init_matched=init_matched, mean=mean, std=std)
        _check_model(model)
        if image_size is not None and image_size < 1:
            raise ValueError(f"timm: image_size must be at least 1, not {image_size}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"timm: drop_path must be in [0, 1), not {drop_path}")
        self.model, self.drop_path = model, drop_path
        network, self._options = _built(model, image_size, drop_path)
        self.image_size = network.pretrained_cfg["input_size"][-1] if image_size is None else image_size
        self._outline = [copy.deepcopy(network).to("meta").eval()]  # in a list, so as not to become a submodule
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        self._measure(network)
        self.network = _synchronised(network, model)

    def _measure(self, network: Any) -> None:
        """Width and stride of the last feature map. ValueError = the network has none, or another image feature."""
        features = self._features(self.image_size, self.image_size)
        info = getattr(network, "feature_info", None)
        if not isinstance(features, Tensor) or not info or not hasattr(network, "forward_head"):
            raise ValueError(f"timm: {self.model} gives no feature map: use a network such as resnet50")
        self.patch = info[-1]["reduction"]
        self.grid(self.image_size, self.image_size)
        self.width = self._tokens(features).shape[-1]
        pooled = tuple(self._outline[0].forward_head(features, pre_logits=True).shape)
        if pooled != (1, self.width):
            told = f"{pooled[1:]} for the image, {self.width} for a patch"
            raise ValueError(f"timm: {self.model} gives features of two widths ({told}): use one such as resnet50")

    @torch.no_grad()
    def _features(self, height: int, width: int) -> Any:
        """What forward_features would give for one image, without numbers. ValueError = images of other sizes only."""
        try:
            return self._outline[0].forward_features(torch.empty(1, 3, height, width, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            advice = "set image_size to what it is to take"
            raise ValueError(f"{self.model} takes no images of {height} x {width} ({reason}): {advice}") from error

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last feature map, as the network itself rounds them."""
        if (height, width) not in self._grids:
            self._grids[height, width] = self._form(self._features(height, width), height, width)
        return self._grids[height, width]

    def _form(self, features: Tensor, height: int, width: int) -> tuple[int, int]:
        if features.ndim == 4:
            rows, columns = features.shape[1:3] if self._channels_last else features.shape[2:]
            return rows, columns
        grid = height // self.patch, width // self.patch
        if grid[0] * grid[1] != self._tokens(features).shape[1]:
            raise ValueError(f"timm: the tokens of {self.model} form no grid: use a network such as vit or resnet50")
        return grid

    @property
    def _channels_last(self) -> bool:
        return getattr(self._outline[0], "output_fmt", "NCHW") == "NHWC"

    def _tokens(self, features: Tensor) -> Tensor:
        """(B, N, D) of a feature map, or of a transformer's tokens without those that are of no patch."""
        if features.ndim == 3:
            return features[:, getattr(self._outline[0], "num_prefix_tokens", 0) :]
        return features.flatten(1, 2) if self._channels_last else features.flatten(2).transpose(1, 2)

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of all patches; image (B, C, h, w) in [0, 1], C 1 or 3. ValueError = a mask not accepted."""
        views, grid = self.views(image, mask), self.grid(*image.shape[-2:])  # (B, 1 or K, C, h, w)
        features = self.network.forward_features(self.normalised(views).flatten(0, 1))
        pooled = self.network.forward_head(features, pre_logits=True).unflatten(0, views.shape[:2])
        patches = self._tokens(features).unflatten(0, views.shape[:2])
        # every rank's gradients are summed: a norm after the average must have one also where only patches are used
        return Tokens(pooled, patches + 0 * pooled[:, :, None], None, grid)

    def pretrained(self, init: str, formats: Mapping[str, type[Initialization]] | None) -> dict[str, Tensor]:
        """The tensors that `init` names; a file in timm's own names needs no format."""
        if weights.timm_config(init) is not None:
            if (held := init.split(".")[0]) != self.model:
                raise ValueError(f"encoder.init: {init} are weights of {held}: write encoder.model: {held}")
            return weights.timm_model(init, "encoder.init", **self._options)[0].state_dict()
        checkpoint = weights.read(init)
        own = self.network.state_dict()
        found = weights.unwrapped(checkpoint, next(iter(own)))
        try:
            return weights.recognise(checkpoint, init, formats)[1]
        except ValueError:
            if not own.keys() <= found.keys():
                raise
            return {name: found[name] for name in own}

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        counts = {k: v for k, v in self.network.state_dict().items() if k.endswith("num_batches_tracked")}
        return {**counts, **(state if convert is None else convert(state, self.network))}  # old files lack the counts

    def to_timm(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        told = self.network.pretrained_cfg
        sized = {k: v for k, v in self._options.items() if k == "img_size" and "dynamic_img_size" in self._options}
        kept = {name: told[name] for name in ("fixed_input_size", "first_conv", "classifier")}
        config = {
            "architecture": self.model,
            "num_classes": 0,
            "num_features": self.width,
            "model_args": sized,
            "pretrained_cfg": {**self.preparation(), **kept},
        }
        return dict(self.network.state_dict()), config


class _BatchNormAct(BatchNorm):
    """timm's batch norm with an activation, with the statistics of every device's images."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = norm.drop, norm.act
        self.load_state_dict(norm.state_dict())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def _check_model(model: str) -> None:
    import timm

    arch, _, tag = model.partition(".")
    if not timm.is_model(arch):
        near = difflib.get_close_matches(model, timm.list_models(), 3)
        raise ValueError(f"timm has no model {model!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if tag:
        raise ValueError(f"{model} names weights: write model: {arch} and init: {model}")


def _built(model: str, image_size: int | None, drop_path: float) -> tuple[Any, dict[str, Any]]:
    """A timm network without classifier, for images of any size where it can be, and the options it was made with."""
    import timm
    from timm.models import get_pretrained_cfg

    fixed = getattr(get_pretrained_cfg(model), "fixed_input_size", False)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if fixed and image_size is not None:
        options["img_size"] = image_size
    try:
        flexible = {**options, "dynamic_img_size": True} if fixed else options
        return timm.create_model(model, num_classes=0, **flexible), flexible
    except TypeError:  # a network without one of these options
        pass
    try:
        return timm.create_model(model, num_classes=0, **options), options
    except TypeError as error:
        given = " and ".join({"drop_path_rate": "drop_path", "img_size": "image_size"}[name] for name in options)
        raise ValueError(f"timm: {given} has no effect on {model}: leave it out") from error


def _synchronised(network: nn.Module, model: str) -> nn.Module:
    """The network with every batch norm replaced by BatchNorm. ValueError = it has some of another kind."""
    from timm.layers import BatchNormAct2d

    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is BatchNormAct2d:
                setattr(module, name, _BatchNormAct(child))
    synchronised(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm):
            kind = type(module).__name__
            raise ValueError(f"timm: {model} has a {kind}, whose statistics several devices cannot share: use another")
    return network


@hookimpl
def ussl_encoders() -> dict[str, type[Encoder]]:
    """Offer the networks of timm."""
    return {"timm": TimmEncoder}
