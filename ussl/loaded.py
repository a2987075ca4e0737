"""A pre-trained encoder, ready to be asked: `ussl.load`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ussl import weights
from ussl.data.preprocess import check, prepared
from ussl.parts import Encoder, Mask, Tokens
from ussl.positions import patch_grid


class Loaded:
    """A pre-trained encoder, ready to be asked: pictures in [0, 1] in, tokens or one feature an image out.

    encoder: the network, in evaluation mode · width: D · image_size: side in pixels it was trained at ·
    mean, std: with which it normalises, which is done inside · device: where it is · preprocess: what pictures
    underwent in its training, {"gaussian_blur": sigma in their own pixels} or nothing: `prepare` does it, and images
    that come from elsewhere must have undergone it.
    """

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.width, self.mean, self.std = encoder.width, encoder.mean, encoder.std
        self.image_size, self.device = image_size, torch.device("cpu")
        self.preprocess = dict(encoder.preprocess)

    def to(self, device: str | torch.device) -> Loaded:
        """This, moved to a device; images are moved there too."""
        self.device = torch.device(device)
        self.encoder.to(self.device)
        return self

    def tokens(self, images: Tensor) -> Tensor:
        """(B, N, D) tokens of the patches, row by row, after the final norm.

        images: (B, C, H, W) or (C, H, W), floats in [0, 1] or uint8, grey or RGB, of any size the patch divides.
        ValueError when they are something else.
        """
        patches = self._ask(images).patches
        if patches is None:
            raise ValueError("this encoder has no tokens of patches: use embed(images)")
        return patches[:, 0]

    def embed(self, images: Tensor) -> Tensor:
        """(B, D) the feature of each image; images as for `tokens`."""
        pooled = self._ask(images).pooled
        if pooled is None:
            raise ValueError("this encoder has no image feature: average tokens(images)")
        return pooled[:, 0]

    def prepare(self, picture: Any) -> Tensor:
        """(1, C, S, S) float image of a file, a PIL image or a uint8 array (H, W) or (H, W, 3), for `tokens`.

        The whole picture undergoes `preprocess` and is resized to `image_size` by antialiased bicubic interpolation,
        whatever its shape.
        """
        pixels = torch.tensor(_pixels(picture))  # (H, W) or (H, W, C)
        pixels = pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
        return prepared(pixels, self.image_size, self.preprocess)[None]

    @torch.no_grad()
    def _ask(self, images: Tensor) -> Tokens:
        return self.encoder(_checked(images).to(self.device))


def _checked(images: Tensor) -> Tensor:
    """(B, C, H, W) float32 in [0, 1]; ValueError when that is not what the images are."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor, not {type(images).__name__}: make one with prepare(picture)")
    shape = tuple(images.shape)
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images must be (B, C, H, W) or (C, H, W) with C 1 or 3, not {shape}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise ValueError(f"images must be floats in [0, 1] or uint8, not {images.dtype}: divide them by their maximum")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= 0 and high <= 1):
        advice = "do not normalise them, and divide 8-bit values by 255"
        raise ValueError(f"images must lie in [0, 1], not in [{low:.4g}, {high:.4g}]: {advice}")
    return images.float()


def _pixels(picture: Any) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of a file, a PIL image or an array."""
    if isinstance(picture, (str, Path)):
        from ussl.data.pictures import read

        return read(Path(picture))
    if hasattr(picture, "convert"):
        if picture.mode not in ("L", "RGB", "RGBA", "P", "1"):
            raise ValueError(f"a PIL image of mode {picture.mode} must be windowed to 8 bits first: give its file")
        return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    grey_or_rgb = isinstance(picture, np.ndarray) and (picture.ndim == 2 or picture.shape[2:] in ((1,), (3,)))
    if not grey_or_rgb or picture.dtype != np.uint8 or not picture.size:
        told = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"a picture is a file, a PIL image or a uint8 array (H, W) or (H, W, 3), not {told}")
    return picture


class _TimmEncoder(Encoder):
    """A timm network, asked as an encoder is."""

    accepts = frozenset()
    _mean: Tensor
    _std: Tensor

    def __init__(self, network: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.width, self.patch = network.num_features, network.feature_info[-1]["reduction"]
        self.mean, self.std = (tuple(config["pretrained_cfg"][name]) for name in ("mean", "std"))
        self.register_buffer("_mean", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(self.std)[:, None, None], persistent=False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if self._tokens:
            return patch_grid(height, width, self.patch)
        with torch.inference_mode():  # networks round differently
            image = torch.zeros(1, 3, height, width, device=self._mean.device, dtype=self._mean.dtype)
            return self.forward(image).grid

    @property
    def _tokens(self) -> bool:
        """Whether a sequence of tokens comes out, not a map."""
        return hasattr(self.network, "patch_embed") and not self._maps

    @property
    def _maps(self) -> bool:
        """Whether rows lie before columns in what comes out, as (B, rows, columns, D)."""
        return getattr(self.network, "output_fmt", "") == "NHWC"

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        if mask is not None:
            raise ValueError("an exported encoder takes no mask: continue from its folder with encoder.init")
        height, width = image.shape[-2:]
        if self._tokens:
            patch_grid(height, width, self.patch)  # in our words, before the network's
        features = self.network.forward_features((image - self._mean) / self._std)
        pooled = self.network.forward_head(features, pre_logits=True)
        if features.ndim == 4:
            if not self._maps:
                features = features.permute(0, 2, 3, 1)  # (B, rows, columns, D)
            grid, patches = (features.shape[1], features.shape[2]), features.flatten(1, 2)
        else:
            grid = patch_grid(height, width, self.patch)
            patches = features[:, self.network.num_prefix_tokens :]
        return Tokens(pooled[:, None], patches[:, None], None, grid)


def load(run: str | Path, plugins: Sequence[str | Path] = ()) -> Loaded:
    """The encoder of a run folder or an encoder folder. ValueError = no such folder, unfinished or damaged.

    plugins: Python files that the encoder's class comes from, where no installed plugin has it and timm neither.
    """
    folder = encoder_folder(Path(run).expanduser())
    config = weights.beside(folder)
    said = config.get("ussl", {}).get("sha256")
    if said and said != weights.digest(folder / "model.safetensors"):
        raise ValueError(f"{folder}/model.safetensors is damaged: it does not have the digest that config.json says")
    encoder = rebuild(folder, config, plugins=plugins)
    return Loaded(encoder, image_size(encoder, config))


def encoder_folder(run: Path) -> Path:
    """The folder of model.safetensors and config.json that `run` means."""
    for folder in (run / "encoder", run):
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    if not run.is_dir():
        raise ValueError(f"{run} is not a folder: give a run folder or the encoder folder in it")
    if (run / "checkpoints").is_dir() or (run / "recipe.yaml").is_file():
        raise ValueError(f"{run} has no encoder yet, the run is not finished: continue it with `ussl fit --resume`")
    raise ValueError(f"{run} is neither a run folder nor an encoder folder (model.safetensors with config.json)")


def rebuild(
    folder: Path, config: dict[str, Any], any_size: bool = True, plugins: Sequence[str | Path] = ()
) -> Encoder:
    """The encoder of a folder: of timm, which needs no plugin, else of the plugin named; `any_size`: timm's too.

    Its `preprocess` is what the configuration says. ValueError = a damaged folder, or one from a later version.
    """
    preprocess = check(config.get("ussl", {}).get("preprocess", {}), f"{folder}/config.json")
    timm = "architecture" in config
    encoder = _of_timm(folder, config, any_size) if timm else _of_plugin(folder, config, plugins)
    encoder.preprocess = preprocess
    return encoder


def _of_timm(folder: Path, config: dict[str, Any], any_size: bool) -> Encoder:
    import timm
    from safetensors import SafetensorError

    sized = "img_size" in config.get("model_args", {})
    options: dict[str, Any] = {"dynamic_img_size": True} if any_size and sized else {}
    try:
        return _TimmEncoder(timm.create_model(f"local-dir:{folder}", pretrained=True, **options), config)
    except (RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} does not hold what its config.json says ({reason})") from error


def _of_plugin(folder: Path, config: dict[str, Any], plugins: Sequence[str | Path]) -> Encoder:
    """An encoder that timm does not know, made by the plugin that the configuration names."""
    from ussl.plugins import Host

    spec = config.get("ussl", {}).get("encoder")
    if not spec:
        raise ValueError(f"{folder}/config.json names neither a timm architecture nor a ussl encoder")
    encoder = Host(plugins).get("encoder", spec["name"])(**spec.get("options", {}))
    encoder.load_state_dict(weights.read(folder))
    return encoder


def image_size(encoder: Encoder, config: dict[str, Any]) -> int:
    """Side in pixels of the images that an encoder was trained on."""
    size = config.get("pretrained_cfg", {}).get("input_size")
    return size[-1] if size else getattr(encoder, "image_size", 224)
