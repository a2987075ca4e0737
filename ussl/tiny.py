"""The smallest parts and data that a method runs with, for tests, and a CLIP model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ussl.draws import Draws
from ussl.parts import Batch, Encoder, Mask, Student, Target, Tokens, View
from ussl.positions import sincos


class TinyEncoder(Encoder):
    """An encoder of a few weights that mixes its tokens once and can drop patches or take changed pixels."""

    accepts = frozenset({"drop", "fill"})

    def __init__(self, *, width: int = 16, patch: int = 4) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.embed = nn.Linear(3 * patch**2, width)
        self.token, self.shared = nn.Linear(width, width), nn.Linear(width, width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Whole patches only."""
        if height % self.patch or width % self.patch:
            raise ValueError(f"{height} x {width} has no whole patches of {self.patch}")
        return height // self.patch, width // self.patch

    def forward(self, image: Tensor, mask: Mask | None = None) -> Tokens:
        """Tokens of width D; pooled is their mean."""
        grid = self.grid(*image.shape[-2:])
        views = image[:, None] if mask is None or mask.image is None else mask.image
        x = self.embed(self._patches(views)) + sincos(self.width, *grid, cls=False).to(image)  # (B, 1 or K, N, D)
        where = None
        if mask is not None:
            x = x.expand(-1, mask.hidden.shape[1], -1, -1)
            if mask.how == "drop":
                where = mask.hidden.byte().argsort(dim=-1, stable=True)[..., : mask.seen]
                x = x.gather(2, where[..., None].expand(-1, -1, -1, self.width))
        x = x + F.gelu(self.token(x) + self.shared(x.mean(2, keepdim=True)))
        return Tokens(x.mean(2), x, where, grid)

    def _patches(self, views: Tensor) -> Tensor:
        """(B, K, N, 3 * patch * patch), normalised."""
        views = views.expand(-1, -1, 3, -1, -1)
        mean, std = (views.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        cells = F.unfold(((views - mean) / std).flatten(0, 1), self.patch, stride=self.patch)
        return cells.transpose(1, 2).unflatten(0, views.shape[:2])


class TinyTarget(Target):
    """Fixed random features of the clean patches, for tests of objectives."""

    def __init__(self, student: Student, *, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.features = TinyEncoder(width=4 * width, patch=student.encoder.patch).requires_grad_(False)

    @torch.no_grad()
    def forward(self, views: list[View]) -> list[Tokens | None]:
        """Tokens (B, 1, N, C) of every view."""
        return [self._tokens(self.features(view.clean)) for view in views]

    def _tokens(self, tokens: Tokens) -> Tokens:
        assert tokens.pooled is not None
        assert tokens.patches is not None
        return Tokens(tokens.pooled[..., : self.width], tokens.patches[..., : self.width], None, tokens.grid)


def tiny_student(patch: int = 4) -> Student:
    """A student without head."""
    return Student(TinyEncoder(patch=patch))


def tiny_draws(count: int = 4, seed: int = 0) -> Draws:
    """Draws for the images 0 .. count - 1."""
    return Draws(seed, 0, 0, torch.arange(count), torch.zeros(count, dtype=torch.int64))


def tiny_view(count: int = 4, height: int = 16, width: int = 16, channels: int = 1, seed: int = 0) -> View:
    """A view of noise whose clean picture differs from its image."""
    numbers = torch.Generator().manual_seed(seed)
    image, clean = torch.rand(2, count, channels, height, width, generator=numbers)
    return View(image, clean)


def tiny_batch(count: int = 4, height: int = 20, width: int = 24, channels: int = 1, seed: int = 0) -> Batch:
    """Pictures of noise that leave the last 2 rows and 3 columns of their canvas empty."""
    numbers = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=numbers, dtype=torch.uint8)
    pixels[..., -2:, :], pixels[..., -3:] = 0, 0
    box = torch.tensor([0, 0, height - 2, width - 3]).repeat(count, 1)
    return Batch(pixels, box, torch.ones(count), torch.arange(count), torch.zeros(count, dtype=torch.int64))


def tiny_mask(view: View, grid: tuple[int, int], masks: int = 1, how: str = "drop", seed: int = 0) -> Mask:
    """Half of the patches hidden, every image and mask its own, and all of these to be predicted."""
    patches = grid[0] * grid[1]
    noise = torch.rand(len(view.image), masks, patches, generator=torch.Generator().manual_seed(seed))
    hidden = (noise.argsort(-1).argsort(-1) >= patches // 2).to(view.image.device)
    mask = Mask(hidden, hidden[:, :, None], patches // 2, patches - patches // 2, how)
    if how == "fill":
        mask.image = torch.where(pixels_of(hidden, grid, view), 0.5, view.image[:, None])
    return mask


def pixels_of(hidden: Tensor, grid: tuple[int, int], view: View) -> Tensor:
    """(B, K, 1, h, w) bool: the pixels of hidden patches."""
    height, width = view.image.shape[-2:]
    cells = hidden.unflatten(-1, grid)[:, :, None]
    return cells.repeat_interleave(height // grid[0], -2).repeat_interleave(width // grid[1], -1)


def save_biomedclip(
    folder: str | Path,
    *,
    seed: int = 0,
    model: str = "vit_base_patch16_224",
    width: int = 512,
    file: str = "open_clip_pytorch_model.bin",
) -> Path:
    """Write a CLIP model of random weights in open_clip's hub layout; the defaults are BiomedCLIP's architecture.

    Args:
        folder: made where it is missing, and returned.
        seed: of the weights.
        model: timm's name of the vision tower (the default takes 346 MB; vit_tiny_patch16_224 takes 22).
        width: of the space shared with text.
        file: open_clip_pytorch_model.bin or open_clip_model.safetensors.
    """
    from ussl.teachers import build

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trunk = build(model, num_classes=0)
    state = {f"visual.trunk.{key}": value for key, value in trunk.state_dict().items()}
    state["visual.head.proj.weight"] = torch.zeros(width, trunk.num_features)
    numbers = torch.Generator().manual_seed(seed)
    state = {key: value + 0.03 * torch.randn(value.shape, generator=numbers) for key, value in state.items()}
    state["text.transformer.embeddings.position_ids"] = torch.arange(8)[None]
    state["logit_scale"] = torch.tensor(4.6)
    vision = {"timm_model_name": model, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    config = {
        "model_cfg": {"embed_dim": width, "vision_cfg": {**vision, "image_size": 224}},
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))
    if file.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    return folder
