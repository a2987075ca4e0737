"""Pictures for the report: what the student was shown, and which pictures the encoder finds alike."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from ussl import run
from ussl.data.pictures import fit
from ussl.data.preprocess import prepared
from ussl.errors import RunFailed
from ussl.parts import Encoder, Mask, View

if TYPE_CHECKING:
    from ussl.training import Training

SIDE = 96  # pixels of the longer side of a saved picture
VIEWS = 4  # shown of a picture
GREY = 0.45  # of a hidden patch
PICTURES = 256  # embedded for the neighbours
SECONDS = 2.0  # spent on reading and embedding them
AT_ONCE = 8  # embedded together
NEAREST = 4


def save(training: Training, folder: Path, count: int = 6) -> None:
    """Write PNGs and snapshot.json into `folder`: `count` masked inputs, and `count` pictures with their nearest.

    Changes neither the networks nor any random state. Takes seconds: as many pictures are embedded as `SECONDS` allow.
    Only the first rank works. RunFailed = the pictures cannot be written.
    """
    if not training.fabric.is_global_zero:
        return
    device = training.fabric.device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), _room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "snapshot.json").unlink(missing_ok=True)  # written last: with it, the pictures are whole
        for old in folder.glob("*.png"):
            old.unlink()
        shown, size = _inputs(training, folder, count)
        neighbours = _neighbours(training, folder, count, size)
        run.write_json(folder / "snapshot.json", {"inputs": shown, "neighbours": neighbours})


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(f"pictures could not be written to {folder}: {error.strerror or error}") from error


def _inputs(training: Training, folder: Path, count: int) -> tuple[list[dict[str, Any]], tuple[int, int]]:
    """The files of each of the first pictures: it, its crop, what the student saw of that; and the crop's size."""
    method = training.method
    batch = training.loader.sample(count).to(training.fabric.device)
    draws = training.draws(0, batch)
    with torch.autocast(batch.pixels.device.type, enabled=False):
        views = method.augmentation(batch, draws)[:VIEWS]
        masks = [method.hide(view, draws.view(i)) for i, view in enumerate(views)]
    seen = [_seen(view, mask, method.student.encoder) for view, mask in zip(views, masks, strict=True)]
    shown = []
    for b, index in enumerate(batch.index.tolist()):
        y, x, height, width = batch.box[b].tolist()
        whole = batch.pixels[b, :, y : y + height, x : x + width] / 255
        pictures = {"picture": whole}
        if seen[0] is not views[0].clean:
            pictures["crop"] = views[0].clean[b]
        pictures |= {f"seen {i + 1}" if len(seen) > 1 else "seen": image[b] for i, image in enumerate(seen)}
        files = [
            (what, _write(folder / f"input-{b}-{i}.png", _pixels(x))) for i, (what, x) in enumerate(pictures.items())
        ]
        shown.append({**_described(training.rows[index]), "files": files})
    return shown, (views[0].image.shape[-2], views[0].image.shape[-1])


def _seen(view: View, mask: Mask | None, encoder: Encoder) -> Tensor:
    """(B, C, h, w) what the student was given, hidden patches grey unless the masking has changed their pixels."""
    if mask is None:
        return view.image
    if mask.image is not None:
        return mask.image[:, 0]
    height, width = view.image.shape[-2:]
    hidden = mask.hidden[:, 0].float().unflatten(1, (1, *encoder.grid(height, width)))
    hidden = interpolate(hidden, (height, width), mode="nearest")  # (B, 1, h, w)
    return view.image.lerp(torch.full_like(view.image, GREY), hidden)


def _neighbours(training: Training, folder: Path, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """`count` pictures, those of each label in turn, with the pictures whose features have the largest cosine."""
    pictures, features, unreadable = _embedded(training, size)
    found: dict[str, Any] = {"pictures": len(pictures), "unreadable": unreadable, "rows": []}
    if len(pictures) < 2 or not features.isfinite().all():
        return found
    similarity = features @ features.T
    similarity.fill_diagonal_(-torch.inf)
    found["typical"] = similarity[similarity.isfinite()].mean().item()
    rows = [training.rows[index] for index, _ in pictures]

    def entry(i: int, **more: Any) -> dict[str, Any]:
        file = _write(folder / f"neighbour-{i}.png", pictures[i][1])
        return {**_described(rows[i]), "file": file, **more}

    for i in _queries(rows, count):
        values, nearest = similarity[i].topk(min(NEAREST, len(rows) - 1))
        alike = [
            entry(j, similarity=value, same_patient=_same(rows[i], rows[j], "patient"))
            for value, j in zip(values.tolist(), nearest.tolist(), strict=True)
        ]
        found["rows"].append({"query": entry(i), "nearest": alike})
    return found


def _embedded(training: Training, size: tuple[int, int]) -> tuple[list[tuple[int, np.ndarray]], Tensor, int]:
    """Row and thumbnail of each picture embedded in the time there is, their unit features (n, D), how many failed."""
    begun, device, reader = time.monotonic(), training.fabric.device, _Reader(training)
    chosen = np.random.default_rng(0).permutation(len(training.rows))[:PICTURES].tolist()
    pictures: list[tuple[int, np.ndarray]] = []
    features, unreadable = [], 0
    with _evaluating(training.exported()) as encoder:
        for first in range(0, len(chosen), AT_ONCE):
            read = [(index, reader.picture(index)) for index in chosen[first : first + AT_ONCE]]
            whole = [(index, picture) for index, picture in read if picture is not None]
            unreadable += len(read) - len(whole)
            if whole:
                images = torch.cat([_resized(*picture, size, encoder) for _, picture in whole]).to(device)
                features.append(normalize(_feature(encoder, images), dim=1))
                pictures += [(index, fit(picture, SIDE)[0]) for index, (picture, _) in whole]
            if time.monotonic() - begun > SECONDS:
                break
    return pictures, torch.cat(features).cpu() if features else torch.empty(0, 0), unreadable


class _Reader:
    """Reads pictures of the training data, spread over all of it."""

    def __init__(self, training: Training) -> None:
        self.rows, self.canvas = training.rows, training.recipe.loader.canvas
        names = {row.get("reader") for row in self.rows}
        recipe = training.recipe
        self.sources = {name: recipe.reader(name) if name else recipe.source() for name in names}

    def picture(self, index: int) -> tuple[np.ndarray, float] | None:
        """(H, W) or (H, W, 3) uint8 and its pixels per source pixel; None: unreadable, as training will tell."""
        row = self.rows[index]
        try:
            return fit(self.sources[row.get("reader")].read(row), self.canvas)
        except (ValueError, OSError):
            return None


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder in evaluation mode, afterwards as it was."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, training in modes:
            module.training = training


def _feature(encoder: Encoder, images: Tensor) -> Tensor:
    """(B, D) image features, or the mean of the patches where an encoder has none."""
    tokens = encoder.forward(images)  # not a call: a compiled encoder would be compiled again for these few
    if tokens.pooled is not None:
        return tokens.pooled[:, 0].float()
    assert tokens.patches is not None
    return tokens.patches[:, 0].float().mean(1)


def _resized(picture: np.ndarray, scale: float, size: tuple[int, int], encoder: Encoder) -> Tensor:
    """(1, 3, h, w) in [0, 1]: the whole picture, of `scale` pixels a source pixel, as the encoder takes it."""
    pixels = torch.tensor(picture).reshape(*picture.shape[:2], -1).permute(2, 0, 1)
    undergone = dict(encoder.preprocess)
    if "gaussian_blur" in undergone:
        undergone["gaussian_blur"] *= scale
    return prepared(pixels, size, undergone)[None].expand(-1, 3, -1, -1)


def _queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Positions of `count` rows, spread evenly over the rows in the order of their labels."""
    order = sorted(range(len(rows)), key=lambda i: _label(rows[i]))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


def _described(row: Mapping[str, Any]) -> dict[str, str]:
    name = Path(str(row["path"])).name
    return {"name": f"{name} ({row['frame']})" if row.get("frame") else name, "label": _label(row)}


def _label(row: Mapping[str, Any]) -> str:
    return " · ".join(str(row[name]) for name in ("organ", "label") if row.get(name) is not None)


def _same(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return a.get(name) is not None and a.get(name) == b.get(name)


def _pixels(image: Tensor) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of an image (C, H, W) in [0, 1]."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _write(path: Path, pixels: np.ndarray) -> str:
    """Save a picture, scaled down to `SIDE`; the name of its file."""
    Image.fromarray(np.ascontiguousarray(fit(pixels, SIDE)[0])).save(path, optimize=True)
    return path.name
