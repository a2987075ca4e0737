"""All that a run trains with, built from its recipe and, on resume, from a checkpoint."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ussl import launch, plan, run
from ussl.data.clean import Cleaned, Cleaning
from ussl.data.loader import Loader, default_workers
from ussl.data.preprocess import check, parting
from ussl.method import Ema, Method
from ussl.notice import once
from ussl.parts import Batch, Draws, Encoder, Optimizer, Part, Progress, Student

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ussl.recipe import Recipe

TRIAL = 4  # images of the step that is timed before training on a CPU


@dataclass
class Training:
    """A run's method, data and optimizer, and how far it is."""

    fabric: Fabric
    recipe: Recipe
    rows: list[dict[str, Any]]
    digest: str  # of the rows
    method: Method
    wrapped: nn.Module  # the method as Fabric runs it
    parameters: list[nn.Parameter]
    parts: list[Part]
    ema: Ema | None
    export: str  # student, ema or teacher
    loader: Loader
    optimizer: Optimizer
    update: torch.optim.Optimizer
    steps: int
    micro: int  # images a device passes at once
    notes: list[str]  # of the encoder's initialisation
    start: int = 0  # steps done before
    refused: int = 0  # steps refused in a row
    recorded: list[dict[str, Any]] | None = None  # the pretrained weights that a resumed run began from

    @property
    def local(self) -> int:
        """Images a device has in a step."""
        return self.recipe.train.batch_size // self.fabric.world_size

    def draws(self, step: int, batch: Batch) -> Draws:
        """The random numbers of a batch."""
        return Draws(self.recipe.seed, self.loader.epoch_of(step), step, batch.index, batch.turn)

    def lineage(self) -> list[dict[str, Any]]:
        """The pretrained weights in use."""
        if self.recorded is not None:
            return self.recorded
        found = [weights for part in self.parts for weights in part.lineage()]
        return [
            weights for i, weights in enumerate(found) if weights not in found[:i]
        ]  # a teacher copies its student's

    def state(self, done: int) -> dict[str, Any]:
        """What a checkpoint holds after `done` steps."""
        return {
            "step": done,
            "steps": self.steps,
            "refused": self.refused,
            "recipe": self.recipe.resolved,
            "data": self.digest,
            "precision": self.fabric._precision.precision,
            "method": self.method.state_dict(),
            "optimizer": self.update.state_dict(),
            "ema": None if self.ema is None else self.ema.average,
            "weights": self.lineage(),
            "statistics": {name: tuple(getattr(self.method.student.encoder, name)) for name in ("mean", "std")},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint; ValueError where it belongs to other images or another length."""
        if state["data"] != self.digest:
            raise ValueError(
                "--resume continues a run as it was begun, but the images differ from those it began with"
            )
        if state["precision"] != (now := self.fabric._precision.precision):
            raise ValueError(
                f"--resume: the run was begun with precision {state['precision']}, here it would be {now}"
            )
        if state["steps"] != self.steps:
            raise ValueError(f"--resume: the run was begun for {state['steps']} steps, now it would be {self.steps}")
        self.method.load_state_dict(state["method"])
        self.update.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.average = {name: x.to(self.fabric.device) for name, x in state["ema"].items()}
        self.start, self.refused, self.recorded = state["step"], state["refused"], state["weights"]

    def exported(self) -> Encoder:
        """The encoder with the weights that `export` names."""
        student: Student | None = self.method.student
        if self.export == "teacher" and self.method.target is not None:
            student = self.method.target.teacher
        if self.export == "ema" and self.ema is not None:
            student = copy.deepcopy(self.method.student)
            student.load_state_dict(self.ema.average)
        assert student is not None
        return student.encoder

    def described(self) -> Iterator[str]:
        """The lines printed before the first step."""
        resolved, batch, world = self.recipe.resolved, self.recipe.train.batch_size, self.fabric.world_size
        named = [k for k in ("encoder", "head", "masking", "target", "objective") if resolved.get(k)]
        trained, encoder = (
            sum(p.numel() for p in part.parameters() if p.requires_grad) / 1e6
            for part in (self.method, self.method.student.encoder)
        )
        yield from self.notes
        names = ", ".join(resolved[k].get("name") or resolved[k]["class_path"] for k in named)
        yield f"method    {names}; {trained:.4g} M parameters trained, {encoder:.4g} M of them the encoder's"
        for weights in self.lineage():
            known = {key: weights[key] or "not known" for key in ("licence", "sha256")}
            yield f"weights   {weights['name']}, licence {known['licence']}, sha256 {known['sha256'][:12]}"
        yield f"device    {launch.described(self.fabric)}; exports the {self.export}"
        peak, warmup = self.optimizer.peak, self.optimizer.warmup_steps(self.steps)
        epoch = None if self.loader.schedule.takes_each_once else self.loader.schedule.images_per_epoch
        yield from plan.schedule(batch, world, self.micro, peak, self.steps, warmup, len(self.rows), epoch)
        yield plan.outlook((self.steps - self.start) * batch, self.images_per_second(), self.fabric.device.type)

    def images_per_second(self) -> float:
        """Of all devices together, a guess from trial steps: a few images, and where that is quick a micro-batch."""
        count = self.micro if self.fabric.device.type == "cuda" else min(TRIAL, self.micro)
        self.trial(count)  # the first is slower than all others
        seconds = self._timed(count)
        if count < self.micro and seconds < 1:
            count, seconds = self.micro, min(self._timed(self.micro) for _ in range(2))
        return count * self.fabric.world_size / seconds

    def _timed(self, count: int) -> float:
        begun = time.perf_counter()
        self.trial(count)
        return time.perf_counter() - begun

    def trial(self, count: int) -> None:
        """A forward and backward pass of `count` images that leaves no trace."""
        several = self.fabric.world_size > 1
        batch = self.loader.sample(count).to(self.fabric.device)
        buffers = self.buffers()
        cuda = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), self.fabric.no_backward_sync(self.wrapped, enabled=several):  # type: ignore[arg-type]
            self.fabric.backward(self.wrapped(batch, self.draws(0, batch))["loss"])
        self.put_back(buffers)
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    def buffers(self) -> list[torch.Tensor]:
        """Copies of what a forward pass may change: batch-norm statistics."""
        return [buffer.clone() for buffer in self.method.buffers()]

    def put_back(self, buffers: list[torch.Tensor]) -> None:
        """Undo a pass: the buffers as they were, no gradients."""
        for buffer, before in zip(self.method.buffers(), buffers, strict=True):
            buffer.copy_(before)
        self.update.zero_grad(set_to_none=True)

    def fits(self, count: int) -> bool:
        """Whether a micro-batch of `count` and the optimizer's state fit in every device's memory."""
        fit = torch.ones((), device=self.fabric.device)
        try:
            ballast = [torch.empty_like(p) for p in self.parameters for _ in range(2)]  # what AdamW will hold
            self.trial(count)
            del ballast
        except RuntimeError as error:
            if not plan.out_of_memory(error):
                raise
            fit.zero_()
        self.update.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return float(self.fabric.all_reduce(fit, reduce_op="sum")) == self.fabric.world_size  # type: ignore[arg-type]


def build(fabric: Fabric, recipe: Recipe, state: Mapping[str, Any] | None) -> Training:
    """Everything a run needs, on its device; of the checkpoint `state` only how its encoder normalises."""
    train = recipe.train
    if train.batch_size % fabric.world_size:
        raise ValueError(f"train.batch_size {train.batch_size} does not divide by {fabric.world_size} devices")
    own = recipe.resolved["source"].get("name", "source")
    rows = [{**row, "reader": row.get("reader") or own} for row in recipe.source().rows()]
    torch.manual_seed(recipe.seed)
    method, notes = build_method(recipe, state is None, state["statistics"] if state else {})
    wrapped = fabric.setup_module(method)
    optimizer = recipe.optimizer()
    loader = build_loader(fabric, recipe, rows)
    training = Training(
        fabric=fabric,
        recipe=recipe,
        rows=rows,
        digest=run.rows_digest(rows),
        method=method,
        wrapped=wrapped,
        parameters=[p for p in method.parameters() if p.requires_grad],
        parts=list(method.parts()),
        ema=Ema(method.student, recipe.ema) if recipe.ema else None,
        export=exported_weights(recipe, method),
        loader=loader,
        optimizer=optimizer,
        update=optimizer.start(method, train.batch_size),
        steps=train.steps or int(train.epochs * loader.steps_per_epoch + 1e-6),
        micro=0,
        notes=notes,
    )
    if training.steps < 1:
        raise ValueError(f"train.epochs {train.epochs} is less than one step: write --train.steps 1 or more")
    for part in training.parts:  # trial steps come before the first step
        part.before_step(Progress(0, training.steps, 0.0, train.epochs))
    micro = plan.micro_batch(
        training.local,
        train.micro_batch,
        contrasts(recipe, method),
        train.accumulate == "anyway",
        training.fits if fabric.device.type == "cuda" else None,
    )
    return replace(training, micro=micro, loader=build_loader(fabric, recipe, rows, micro))


def build_method(
    recipe: Recipe, fresh: bool, statistics: Mapping[str, tuple[float, ...]] | None = None
) -> tuple[Method, list[str]]:
    """The method in training mode, and what the encoder's initialisation had to say.

    statistics: mean and std of a run that goes on, whose `init` need not be there any more.
    """
    encoder = recipe.encoder(statistics or {})
    notes = encoder.initialize(recipe.formats()) if fresh else []
    augmentation = recipe.augmentation()
    side, made_for = getattr(augmentation, "size", None), getattr(encoder, "image_size", None)
    cleaning = Cleaning(recipe.loader.scan, recipe.loader.grey)
    if cleaning.preprocess:
        augmentation = Cleaned(cleaning, augmentation)
    encoder.preprocess = check(augmentation.preprocess, "the augmentation")
    if side and made_for and side != made_for:
        once(
            f"the encoder is made for images of {made_for} pixels, at which it is probed and exported, and trains on "
            f"{side}: write --encoder.image_size {side} to have one"
        )
    if fresh and (line := parting(getattr(encoder, "init", None), encoder.preprocess)):
        once(line)
    student = Student(encoder, recipe.head(encoder), recipe.joined)
    if not recipe.joined and not batch_normed(student):
        raise ValueError("joined: false has no effect: neither encoder nor head has batch norm; remove it")
    target = recipe.target(student)
    method = Method(augmentation, student, recipe.masking(), target, recipe.objective(student, target))
    if recipe.train.activation_checkpointing:
        able = [part for part in method.parts() if part.can_recompute]
        if not able:
            raise ValueError("train.activation_checkpointing: no part of this recipe can recompute activations")
        for part in able:
            part.recompute = True
    if recipe.train.compile:
        encoder.compile()
        method.objective.compile()
    return method.train(), notes


def batch_normed(*modules: nn.Module) -> bool:
    """Whether anything in them takes statistics over the images of a pass."""
    return any(isinstance(inner, nn.modules.batchnorm._BatchNorm) for one in modules for inner in one.modules())


def contrasts(recipe: Recipe, method: Method) -> str | None:
    """Why the images of one pass belong together, so that gradients cannot be accumulated; None = they do not."""
    if not method.objective.additive:
        return f"objective {recipe.resolved['objective'].get('name', 'of this recipe')} compares the images"
    if batch_normed(method.student, method.objective):
        return "batch norm takes its statistics over the images"
    return None


def build_loader(fabric: Fabric, recipe: Recipe, rows: list[dict[str, Any]], micro: int = 1) -> Loader:
    """The batches of this rank."""
    workers = recipe.loader.workers
    return Loader(
        rows,
        {name: recipe.reader(name) for name in sorted({row["reader"] for row in rows})},
        recipe.sampler(),
        seed=recipe.seed,
        batch_size=recipe.train.batch_size,
        micro_batch=micro,
        canvas=recipe.loader.canvas,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=default_workers(fabric.world_size // recipe.train.num_nodes) if workers == "auto" else int(workers),
        pin=fabric.device.type == "cuda",
    )


def exported_weights(recipe: Recipe, method: Method) -> str:
    """Which weights become the encoder: student, ema or teacher."""
    teaches = method.target is not None and method.target.teacher is not None
    wanted = recipe.export or ("ema" if recipe.ema else "teacher" if teaches else "student")
    if wanted == "teacher" and not teaches:
        raise ValueError("export: teacher needs a target with an EMA teacher: write --export student")
    return wanted
