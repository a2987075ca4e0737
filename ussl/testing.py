"""Checks for authors of plugins: does a part keep the contract of its kind? AssertionError says why it does not.

Every check takes a class with its options: `check_masking(MyMasking, ratio=0.5)`. Maskings and encoders may come as an
instance, heads, targets and objectives as a factory: `check_target(lambda student: MyTarget(student, depth=2))`.
The tiny parts and data that the checks use are here for tests of one's own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ussl.draws import Draws
from ussl.parts import (
    Encoder,
    Head,
    Mask,
    Masking,
    Objective,
    Part,
    Progress,
    Sampler,
    Student,
    Target,
    Tokens,
    View,
)
from ussl.plugins import misfit
from ussl.tiny import (
    TinyEncoder,
    TinyTarget,
    pixels_of,
    save_biomedclip,
    tiny_batch,
    tiny_draws,
    tiny_mask,
    tiny_student,
    tiny_view,
)

__all__ = [
    "TinyEncoder",
    "TinyTarget",
    "check_encoder",
    "check_head",
    "check_masking",
    "check_objective",
    "check_sampler",
    "check_target",
    "save_biomedclip",
    "tiny_batch",
    "tiny_draws",
    "tiny_mask",
    "tiny_rows",
    "tiny_student",
    "tiny_view",
]

START = Progress(step=0, steps=10, epoch=0.0, epochs=100.0)


def check_masking(
    masking: Masking | type[Masking], grids: Sequence[tuple[int, int]] = ((4, 4), (6, 4), (3, 8)), /, **options: Any
) -> None:
    """Equal counts in every row, one result for one draw whatever the batch, and the view left as it is."""
    part = _instance("masking", masking, options)
    for grid in grids:
        for channels in (1, 3):
            view, draws = tiny_view(3, 4 * grid[0], 4 * grid[1], channels), tiny_draws(3)
            mask = _keeps_state(part, lambda: part(view, grid, draws))  # noqa: B023 (called at once)
            _check_mask(mask, view, grid)
            before = tiny_view(3, 4 * grid[0], 4 * grid[1], channels)
            unchanged = torch.equal(view.image, before.image) and torch.equal(view.clean, before.clean)
            _require(
                unchanged, "the masking changed view.image or view.clean in place; put changed pixels in mask.image"
            )
            torch.rand(1)  # moves the global random state
            _require(_same(mask, part(view, grid, draws)), "two calls with equal draws gave two masks; use draws only")
            alone = View(view.image[2:], view.clean[2:])
            single = part(alone, grid, Draws(0, 0, 0, draws.index[2:], draws.turn[2:]))
            rows = Mask(mask.hidden[2:], mask.predict[2:], mask.seen, mask.asked, mask.how)
            rows.image = None if mask.image is None else mask.image[2:]
            rows.bands = None if mask.bands is None else mask.bands[2:]
            _require(_same(rows, single), "an image's mask depends on the other images of its batch")


def check_encoder(encoder: Encoder | type[Encoder], picture: tuple[int, int] | None = None, /, **options: Any) -> None:
    """Shapes, grey as RGB, hidden pixels without influence, K masks as K passes, gradients, state.

    Args:
        encoder: a class or an instance.
        picture: height and width to try; four patches each way by default.
        options: of the class.
    """
    part = _instance("encoder", encoder, options)
    height, width = picture or (4 * part.patch, 4 * part.patch)
    view, grid = tiny_view(3, height, width, 3), part.grid(height, width)
    unknown = set(part.accepts) - {"drop", "token", "fill"}
    _require(not unknown, f"accepts names {sorted(unknown)}; a mask is drop, token or fill")
    masks = [tiny_mask(view, grid, 2, how) for how in sorted(part.accepts)]
    for mode in (True, False):
        part.train(mode)
        for mask in (None, *masks):
            tokens = _keeps_state(part, lambda: part(view.image, mask))  # noqa: B023 (called at once)
            _check_tokens(tokens, part.width, len(view.image), mask, grid)
    grey = view.image[:, :1]
    _close(part(grey), part(grey.expand(-1, 3, -1, -1)), "a grey picture and the same as RGB give different tokens")
    for mask in masks:
        _check_encoder_mask(part, view, grid, mask)
    part.train()
    _check_gradients([part(view.image, mask) for mask in (None, *masks)], part)
    part.eval()
    twin = copy.deepcopy(part)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.load_state_dict(part.state_dict())
    _close(part(grey), twin(grey), "an encoder loaded from state_dict() gives other tokens: something is not saved")


def check_head(head: type[Head] | Callable[[Encoder], Head], /, **options: Any) -> None:
    """The width it announces, the grid kept, gradients, state."""
    encoder = TinyEncoder()
    part = _built("head", head, (encoder,), options)
    view, grid = tiny_view(), (4, 4)
    for mask in (None, tiny_mask(view, grid, 2)):
        tokens = encoder(view.image, mask)
        _check_tokens(_keeps_state(part, lambda: part(tokens)), part.width, 4, mask, grid)  # noqa: B023
    _check_gradients([part(encoder(view.image))], part)
    _require(encoder.embed.weight.grad is not None, "no gradient comes through the head to the encoder")


def check_target(target: type[Target] | Callable[[Student], Target], /, **options: Any) -> None:
    """Tokens on the student's grid from view.clean alone, without gradient and without state of forward."""
    student = tiny_student()
    part = _built("target", target, (student,), options)
    part.before_step(START)
    view = tiny_view(4, 16, 24)
    trained = [name for name, p in part.named_parameters() if p.requires_grad]
    _require(not trained, f"the optimiser would train the target's {trained[:1]}; call requires_grad_(False)")
    found = _keeps_state(part, lambda: part([view, view]))
    _require(len(found) == 2, f"two views gave {len(found)} targets; return one for each, None where there is none")
    tokens = found[0]
    _require(tokens is not None, "the first global view has no target")
    _check_tokens(tokens, part.width, 4, None, (4, 6))
    outputs = [x for x in (tokens.pooled, tokens.patches) if x is not None]
    _require(not any(x.requires_grad for x in outputs), "the target has a gradient; compute it under torch.no_grad()")
    other = tiny_view(4, 16, 24, seed=1)
    changed = part([View(other.image, view.clean)])[0]
    _close(tokens, changed, "the target depends on view.image, which is degraded for the student; use view.clean")
    changed = part([View(view.image, other.clean)])[0]
    _require(not _equal(tokens, changed), "the target does not depend on view.clean")
    for entry in part.lineage():
        lacks = {"name", "source", "sha256", "licence"} - set(entry)
        _require(not lacks, f"an entry of lineage() lacks {sorted(lacks)}")


def check_objective(
    objective: type[Objective] | Callable[[Student, Target], Objective],
    /,
    *,
    student: Student | None = None,
    target: type[Target] | Callable[[Student], Target] | None = TinyTarget,
    views: int = 1,
    masked: bool = True,
    **options: Any,
) -> None:
    """A finite 0-dim loss in fp32, gradients to the student and to every own weight, state, and the additive claim.

    Args:
        objective: a class or a factory; pass an option with one of the names below by functools.partial.
        student: a tiny one by default.
        target: class or factory of the target the objective is given; None = it takes none.
        views: how many it is given.
        masked: whether they are masked.
        options: of the class.
    """
    student = tiny_student() if student is None else student
    given: Any = None if target is None else _built("target", target, (student,), {})
    part = _built("objective", objective, (student, given), options)
    for one in (student, given, part):
        if one is not None:
            one.before_step(START)
    crops = [tiny_view(seed=i) for i in range(views)]
    masks = [tiny_mask(crop, (4, 4), 2, seed=i) if masked else None for i, crop in enumerate(crops)]
    outputs, targets = student(crops, masks), [None] * views if given is None else given(crops)
    results = _keeps_state(part, lambda: part(outputs, targets, masks))
    _require("loss" in results, f'the objective returned {sorted(results)}, without "loss"')
    for name, value in results.items():
        _require(isinstance(value, Tensor) and value.ndim == 0, f"{name} is not a 0-dim tensor")
        _require(bool(value.isfinite()), f"{name} is {value}")
    loss = results["loss"]
    _require(loss.dtype == torch.float32, f"the loss is {loss.dtype}; compute it in torch.float32")
    loss.backward()
    reached = any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    _require(reached, "the loss has no gradient to the student")
    _require_gradients(part)
    if part.additive:
        halves = [
            part(_rows(outputs, half), _rows(targets, half), _rows(masks, half))["loss"]
            for half in (slice(0, 2), slice(2, 4))
        ]
        additive = torch.allclose(torch.stack(halves).mean(), loss, rtol=1e-4, atol=1e-6)
        _require(additive, "additive is True, but the loss of a batch is not the mean of its halves'; say False")


def check_sampler(
    sampler: Sampler | type[Sampler],
    rows: Sequence[Mapping[str, Any]] | None = None,
    /,
    *,
    batch_size: int = 4,
    epochs: int = 4,
    **options: Any,
) -> None:
    """Row numbers that exist, as many in every epoch, by seed and epoch alone, whatever the rank.

    Args:
        sampler: a class or an instance.
        rows: what it is to order; `tiny_rows()` by default.
        batch_size: images of an optimiser step.
        epochs: how many are tried.
        options: of the class.
    """
    rows = tiny_rows() if rows is None else rows
    before = copy.deepcopy(list(rows))
    part = _instance("sampler", sampler, options)
    part.batch_size = batch_size
    orders = [part.order(rows, 0, epoch) for epoch in range(epochs)]
    _require(list(rows) == before, "the sampler changed the rows")
    for epoch, order in enumerate(orders):
        _check_order(order, len(rows), epoch)
    lengths = sorted({len(order) for order in orders})
    _require(len(lengths) == 1, f"epochs have {' or '.join(map(str, lengths))} entries; all must have as many")
    _require(lengths[0] >= batch_size, f"an epoch of {lengths[0]} entries has no batch of {batch_size}")
    twin = copy.deepcopy(part) if not isinstance(sampler, type) else sampler(**options)
    twin.batch_size = batch_size
    with _as_rank(1):
        again = [twin.order(rows, 0, epoch) for epoch in reversed(range(epochs))][::-1]
    same = all(np.array_equal(a, b) for a, b in zip(orders, again, strict=True))
    _require(
        same, "another process, asked in another sequence, got other orders; compute them from seed and epoch only"
    )
    differ = epochs < 2 or any(not np.array_equal(orders[0], order) for order in orders[1:])
    _require(differ, "all epochs have the same order; draw it by epoch")
    other = [part.order(rows, 1, epoch) for epoch in range(epochs)]
    differ = any(not np.array_equal(a, b) for a, b in zip(orders, other, strict=True))
    _require(differ, "another seed gives the same orders; draw them by seed")


def tiny_rows(count: int = 48) -> list[dict[str, Any]]:
    """Rows of three organs (in 6 : 2 : 1), two sources and several patients, for samplers; no picture files."""
    organs = ("thyroid",) * 6 + ("breast",) * 2 + ("liver",)
    return [
        {
            "path": f"{i}.png",
            "source": "ab"[i // 2 % 2],
            "organ": organs[i % len(organs)],
            "label": ("benign", "malignant")[i // 9 % 2],
            "patient": f"{organs[i % len(organs)]}-{i // 18}",
        }
        for i in range(count)
    ]


def _check_order(order: Any, rows: int, epoch: int) -> None:
    whole = isinstance(order, np.ndarray) and order.ndim == 1 and np.issubdtype(order.dtype, np.integer)
    found = f"{order.dtype} {order.shape}" if isinstance(order, np.ndarray) else type(order).__name__
    _require(whole, f"order gave {found} in epoch {epoch}; it must be (n,) whole numbers, a numpy array")
    inside = len(order) == 0 or 0 <= order.min() <= order.max() < rows
    _require(inside, f"epoch {epoch} has row numbers outside 0 to {rows - 1}")


@contextmanager
def _as_rank(rank: int) -> Iterator[None]:
    """As in a process of that rank, with the global random state moved; both are put back."""
    names = ("RANK", "LOCAL_RANK")
    before, state = {name: os.environ.get(name) for name in names}, np.random.get_state()
    os.environ.update(dict.fromkeys(names, str(rank)))
    np.random.seed(rank + 1)
    try:
        yield
    finally:
        np.random.set_state(state)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


def _fits(kind: str, part: Any) -> None:
    """A class has the constructor and the methods of its kind, as the plugin host asks for."""
    if isinstance(part, type):
        problem = misfit(kind, part)
        _require(not problem, problem)


def _instance(kind: str, part: Any, options: dict[str, Any]) -> Any:
    _fits(kind, part)
    if isinstance(part, type):
        return part(**options)
    _require(not options, f"options {sorted(options)} have no effect on an instance; give the class")
    return part


def _built(kind: str, part: Any, leading: tuple[Part, ...], options: dict[str, Any]) -> Any:
    _fits(kind, part)
    return part(*leading, **options)


def _state(part: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, less the statistics that torch's batch norms change in forward."""
    norms = [name for name, m in part.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    skipped = tuple(f"{name}.{buffer}" for name in norms for buffer in ("running_", "num_batches_"))
    own = (*part.named_parameters(), *part.named_buffers())
    return {name: x.detach().clone() for name, x in own if not name.startswith(skipped)}


def _keeps_state(part: nn.Module, call: Callable[[], Any]) -> Any:
    """The result of a call that must change no parameter and no buffer."""
    before = _state(part)
    result = call()
    after = _state(part)
    changed = [name for name in before | after if name not in before or not torch.equal(before[name], after[name])]
    _require(not changed, f"forward changed {changed[:1]}; change state in before_step, after_backward or after_step")
    return result


def _check_mask(mask: Any, view: View, grid: tuple[int, int]) -> None:
    _require(isinstance(mask, Mask), f"a global view got {type(mask).__name__}; return a Mask")
    hidden, predict, patches = mask.hidden, mask.predict, grid[0] * grid[1]
    shape = (len(view.image), hidden.shape[1], patches)
    _require(hidden.dtype == predict.dtype == torch.bool, "hidden and predict must be torch.bool")
    _require(hidden.shape == shape, f"hidden is {tuple(hidden.shape)}; it must be (B, K, N), here {shape}")
    fits = predict.ndim == 4 and (*predict.shape[:2], predict.shape[3]) == shape
    _require(fits, f"predict is {tuple(predict.shape)}; it must be (B, K, P, N)")
    _require(type(mask.seen) is int and type(mask.asked) is int, "seen and asked must be Python ints")
    _require(bool(((~hidden).sum(-1) == mask.seen).all()), f"not every row has seen = {mask.seen} patches left to see")
    _require(bool((predict.sum(-1) == mask.asked).all()), f"not every predict set has asked = {mask.asked} patches")
    _require(mask.asked > 0, "nothing is to be predicted")
    _require(mask.how in ("drop", "token", "fill"), f"how is {mask.how!r}; it is drop, token or fill")
    if mask.how == "fill" or mask.image is not None:
        wanted = (*shape[:2], *view.image.shape[1:])
        _require(mask.image is not None, "how is fill, but mask.image is None; put the changed pixels there")
        _require(mask.image.shape == wanted, f"mask.image is {tuple(mask.image.shape)}; it must be {wanted}")
    if shape[1] > 1 and mask.how != "fill":
        _require(not torch.equal(hidden[:, :1].expand_as(hidden), hidden), "the K masks of a view are all the same")


def _check_tokens(tokens: Tokens, width: int, count: int, mask: Mask | None, grid: tuple[int, int]) -> None:
    masks = 1 if mask is None else mask.hidden.shape[1]
    seen = mask.seen if mask is not None and mask.how == "drop" else grid[0] * grid[1]
    _require(tokens.pooled is not None or tokens.patches is not None, "tokens have neither pooled nor patches")
    for name, x, shape in (
        ("pooled", tokens.pooled, (count, masks, width)),
        ("patches", tokens.patches, (count, masks, seen, width)),
    ):
        if x is not None:
            _require(x.shape == shape, f"{name} is {tuple(x.shape)}; it must be {shape}")
            _require(bool(x.isfinite().all()), f"{name} is not finite")
    _require(tokens.grid == grid, f"tokens.grid is {tokens.grid}; it must be {grid}")
    needs = tokens.patches is not None and seen < grid[0] * grid[1]
    _require((tokens.where is not None) == needs, f"where must be {'given' if needs else 'None'} here")


def _check_encoder_mask(part: Encoder, view: View, grid: tuple[int, int], mask: Mask) -> None:
    tokens = part(view.image, mask)
    if tokens.where is not None:
        marked = torch.zeros_like(mask.hidden).scatter(-1, tokens.where, True)
        _require(torch.equal(marked, ~mask.hidden), "where does not hold the positions of the seen patches")
    for k in range(mask.hidden.shape[1]):
        single = part(view.image, _only(mask, k))
        several = _map(tokens, lambda x: x[:, k : k + 1])  # noqa: B023 (called at once)
        _close(several, single, "K masks in one pass give other tokens than K passes")
    if mask.image is not None:
        _close(part(1 - view.image, mask), tokens, "the encoder looks at view.image although the mask has an image")
        return
    one = _only(mask, 0)
    pixels, tokens = pixels_of(one.hidden, grid, view)[:, 0], part(view.image, one)
    changed = part(torch.where(pixels, 1 - view.image, view.image), one)
    _close(changed, tokens, "a hidden pixel changes the tokens: the encoder looks at what is masked")
    changed = part(torch.where(pixels, view.image, 1 - view.image), one)
    _require(not _equal(changed, tokens), "seen pixels do not change the tokens")


def _check_gradients(outputs: Iterable[Tokens], part: nn.Module) -> None:
    part.zero_grad()
    parts = [x for tokens in outputs for x in (tokens.pooled, tokens.patches) if x is not None]
    weights = torch.Generator().manual_seed(0)
    torch.stack([(x * torch.randn(x.shape, generator=weights)).sum() for x in parts]).sum().backward()
    _require_gradients(part)


def _require_gradients(part: nn.Module) -> None:
    unreached = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
    _require(not unreached, f"no gradient reaches {unreached[:1]}; use it, or do not train it")


def _only(mask: Mask, k: int) -> Mask:
    """The k-th mask of every view."""
    image = None if mask.image is None else mask.image[:, k : k + 1]
    return Mask(mask.hidden[:, k : k + 1], mask.predict[:, k : k + 1], mask.seen, mask.asked, mask.how, image)


def _map(tokens: Tokens, function: Callable[[Tensor], Tensor]) -> Tokens:
    pooled, patches, where = (
        None if x is None else function(x) for x in (tokens.pooled, tokens.patches, tokens.where)
    )
    return Tokens(pooled, patches, where, tokens.grid)


def _rows(items: Sequence[Any], rows: slice) -> list[Any]:
    """Some of the images of Tokens and Masks; None stays None."""

    def cut(item: Any) -> Any:
        if item is None:
            return None
        names = ("pooled", "patches", "where") if isinstance(item, Tokens) else ("hidden", "predict", "image", "bands")
        item = copy.copy(item)
        for name in names:
            value = getattr(item, name)
            setattr(item, name, None if value is None else value[rows])
        return item

    return [cut(item) for item in items]


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]]:
    return [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__]


def _same(a: Mask, b: Mask) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in _pairs(a, b)
    )


def _equal(a: Tokens, b: Tokens) -> bool:
    """Whether tokens are the same up to rounding."""
    tensors = [(x, y) for x, y in _pairs(a, b) if isinstance(x, Tensor)]
    return all(isinstance(y, Tensor) and torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in tensors)


def _close(a: Tokens, b: Tokens, sentence: str) -> None:
    _require(_equal(a, b), sentence)
