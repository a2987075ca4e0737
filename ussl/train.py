"""The training loop: one update a step, refused when not finite, interruptible, resumable to the bit."""

from __future__ import annotations

import csv
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ussl import checkpoint, plan, run
from ussl.errors import RunFailed
from ussl.health import REMEDY, Watch
from ussl.launch import Interruption, launch, peak_memory, together
from ussl.logs import Clock, Metrics, duration
from ussl.parts import Batch, Progress
from ussl.probing import Probing, table
from ussl.training import Training, build

FINISHED = ("encoder/model.safetensors", "encoder/config.json", "report.html")  # in the order they are written

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from ussl.recipe import Recipe


def fit(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> int:
    """Train as `recipe` says into the folder `out`; the exit code: 0 done, 130 interrupted with a checkpoint."""
    with Interruption() as interruption:
        fabric = launch(recipe.train)
        together(fabric, lambda: run.check_folder(out, resume, overwrite))
        state = restore(fabric, out, recipe) if resume else None
        if state and state["step"] == state["steps"] and all((out / name).exists() for name in FINISHED):
            fabric.print(f"finished  all {state['steps']} steps were done before; nothing changed")
            return 0
        training = build(fabric, recipe, state)
        if state is not None:
            training.restore(state)
        lines = list(training.described())
        together(fabric, lambda: take(training, out, fresh=state is None))
        for line in lines:
            fabric.print(line, flush=True)
        done, clock = loop(training, out, interruption)
        return finish(training, out, done, clock)


def restore(fabric: Fabric, out: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, or None, said aloud."""
    state, lines = checkpoint.load(out / "checkpoints") if fabric.is_global_zero else (None, [])
    step = fabric.broadcast(state and state["step"])  # the first rank has set damaged ones aside
    if not fabric.is_global_zero and step is not None:
        state, _ = checkpoint.load(out / "checkpoints")
        if state is None or state["step"] != step:
            raise RunFailed(f"rank {fabric.global_rank} does not see the checkpoint of step {step} in {out}: share it")
    for line in lines:
        fabric.print(line)
    if state is None:
        fabric.print(f"resume    no usable checkpoint in {out / 'checkpoints'}: starting over")
    else:
        run.same_training(state["recipe"], recipe.resolved)
        fabric.print(f"resume    after step {state['step']} of {state['steps']}")
    return state


def take(training: Training, out: Path, fresh: bool) -> None:
    """Make the folder this run's: recipe.yaml and environment.json, and nothing of an earlier run when fresh."""
    recipe = training.recipe
    more = {"recipe": recipe.name, "seed": recipe.seed, "export": training.export}
    described = run.environment(len(training.rows), training.digest, training.lineage(), **more)
    run.take_folder(out, fresh)
    run.write(out / "recipe.yaml", recipe.to_yaml())
    run.write_json(out / "environment.json", described)


def loop(training: Training, out: Path, interruption: Interruption) -> tuple[int, Clock]:
    """Train to the end or to an interruption, and save; the steps done, and where the time went."""
    train, first, done = training.recipe.train, training.fabric.is_global_zero, training.start
    probing = Probing(training, out)
    probing.begin()
    watch = Watch(training.optimizer.warmup_steps(training.steps))
    clock = Clock()
    batches = clock.waiting(training.loader.batches(training.start, training.steps))
    interruption.training = True
    logs: Any = Metrics(out, training.start) if first else nullcontext()
    with logs as metrics, progress_bar(training.start, training.steps, first) as bar:
        for step in range(training.start, training.steps):
            values = step_or_save(training, out, step, batches, interruption)
            if values is None:
                save(training, out, done)
                break
            done = step + 1
            stop = values.pop("stop")
            seconds, waited = clock.step()
            rate = train.batch_size / seconds
            values |= {"images_per_second": rate, "data_wait": waited}
            told = f"loss {values['loss']:.4g}, {rate:.3g} images/s, {waited:.0%} waiting for data"
            bar.set_postfix_str(told, refresh=False)
            bar.update()
            if metrics is not None:
                metrics.write(done, values)
            due, ill = probing.due(done), watch.see(done, values)
            if (
                stop
                or due
                or done % train.save_every == 0
                or done == training.steps
                or (ill and train.stop_on_collapse)
            ):
                save(training, out, done)  # first: a probe may take long, or fail
            if ill:
                tell(training, out, done, ill)
            if stop and done < training.steps:
                break
            probing.measure(due, done)
            clock.resume()
    return done, clock


def tell(training: Training, out: Path, done: int, ill: str) -> None:
    """Say that a run is not learning; RunFailed where the recipe wants it to end so."""
    training.fabric.print(f"\nhealth    after {done} steps: {ill}")
    if training.recipe.train.stop_on_collapse:
        together(training.fabric, lambda: write_report(training, out))
        raise RunFailed(f"train.stop_on_collapse: {ill}. A checkpoint of step {done} is there. {REMEDY}")


def step_or_save(
    training: Training, out: Path, step: int, batches: Iterator[Any], interruption: Interruption
) -> dict[str, float] | None:
    """An update; where it cannot be made, what was learned before is saved first."""
    try:
        return update(training, out, step, batches, interruption)
    except ValueError:  # on every rank
        save(training, out, step)
        raise
    except RuntimeError as error:
        if plan.out_of_memory(error):
            raise RunFailed(
                f"the device ran out of memory in step {step + 1}: --resume with a --train.micro_batch "
                f"below {training.micro}"
            ) from error
        if "DataLoader worker" in str(error):
            save(training, out, step)
            raise RunFailed(f"a reading process was killed, for want of memory perhaps ({error}); --resume") from error
        raise


def update(
    training: Training, out: Path, step: int, batches: Iterator[Any], interruption: Interruption
) -> dict[str, float] | None:
    """One update from one global batch; None when interrupted amid it (one device needs nobody's agreement).

    Raises:
        ValueError: a picture cannot be read; on every rank, and nothing is updated.
    """
    fabric, recipe = training.fabric, training.recipe
    at = Progress(step, training.steps, step / training.steps * recipe.train.epochs, recipe.train.epochs)
    for part in training.parts:
        part.before_step(at)
    training.optimizer.before_step(training.update, at)
    buffers, count, trouble = training.buffers(), training.local // training.micro, ""
    losses: list[dict[str, Tensor]] = []
    for i in range(count):
        if interruption.asked and fabric.world_size == 1:
            training.put_back(buffers)
            return None
        batch, unread = fetch(training, batches)
        trouble = trouble or unread
        losses.append(accumulate(training, step, i, count, batch.to(fabric.device)))
    for part in training.parts:
        part.after_backward(at)
    norm = torch.nn.utils.get_total_norm([p.grad for p in training.parameters if p.grad is not None])
    values = read(training, losses, norm, stop=bool(interruption.asked), trouble=bool(trouble))
    if values.pop("trouble"):
        training.put_back(buffers)
        raise ValueError(next(filter(None, gathered(fabric, trouble))))
    if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
        training.refused = 0
        training.optimizer.clip_gradients(training.parameters, norm)
        training.update.step()
        for part in training.parts:
            part.after_step(at)
        if training.ema is not None:
            training.ema.update(training.method.student, step)
        training.update.zero_grad(set_to_none=True)
    else:
        training.put_back(buffers)
        refuse(training, out, step, values)
    epoch = (step + 1) / training.loader.steps_per_epoch  # of the data, where at.epoch is the schedule's
    chance = training.method.objective.chance
    known = {} if chance is None else {"chance": chance}
    return {"epoch": epoch, "learning_rate": training.update.param_groups[0]["lr"], **known, **values}


def fetch(training: Training, batches: Iterator[Any]) -> tuple[Batch, str]:
    """The next micro-batch; where it cannot be read, a blank one and why, since the other ranks wait for this one."""
    try:
        return next(batches)[1], ""
    except ValueError as error:
        if training.fabric.world_size == 1:
            raise
        m = training.micro
        box, zeros = torch.tensor([[0, 0, 64, 64]]).repeat(m, 1), torch.zeros(m, dtype=torch.int64)
        blank = torch.zeros(m, 1, 64, 64, dtype=torch.uint8)
        return Batch(blank, box, torch.ones(m), zeros, zeros), str(error)


def gathered(fabric: Fabric, text: str) -> list[str]:
    """The text of every rank."""
    if fabric.world_size == 1:
        return [text]
    texts: list[str] = [""] * fabric.world_size
    torch.distributed.all_gather_object(texts, text)
    return texts


def accumulate(training: Training, step: int, i: int, count: int, batch: Batch) -> dict[str, Tensor]:
    """Add the gradients of the `i`-th of `count` micro-batches of a step."""
    fabric = training.fabric
    # dropout and drop path draw from torch's generator
    torch.manual_seed(zlib.crc32(f"{training.recipe.seed}/{step}/{fabric.global_rank}/{i}".encode()))
    waits = fabric.world_size > 1 and i + 1 < count
    with fabric.no_backward_sync(training.wrapped, enabled=waits):  # type: ignore[arg-type]
        losses = training.wrapped(batch, training.draws(step, batch))
        fabric.backward(losses["loss"] / count)
    return {name: value.detach() for name, value in losses.items()}


def read(training: Training, losses: list[dict[str, Tensor]], norm: Tensor, **flags: bool) -> dict[str, float]:
    """The numbers of a step, means over ranks, by its one read of the device; a flag is above 0 if any rank set it."""
    fabric, names = training.fabric, list(losses[0])
    means = [torch.stack([loss[name].float() for loss in losses]).mean() for name in names]
    numbers = torch.stack([*means, norm.float(), *torch.tensor(list(flags.values()), device=norm.device).float()])
    if fabric.world_size > 1:
        numbers = fabric.all_reduce(numbers, reduce_op="mean")  # type: ignore[assignment]
    return dict(zip([*names, "gradient_norm", *flags], numbers.tolist(), strict=True))


def refuse(training: Training, out: Path, step: int, values: Mapping[str, float]) -> None:
    """Say which step and images gave a non-finite loss or gradient; RunFailed after too many in a row."""
    training.refused += 1
    _, index, _ = training.loader.rows_of(step)
    paths = [str(training.rows[i]["path"]) for i in index]
    if training.fabric.is_global_zero:
        with (out / "refused.csv").open("a", newline="") as file:
            csv.writer(file).writerows((step + 1, path) for path in paths)
    more = f" and {len(paths) - 4} more (refused.csv)" if len(paths) > 4 else ""
    training.fabric.print(
        f"\nstep {step + 1} refused: loss {values['loss']:g}, gradient norm {values['gradient_norm']:g}; "
        f"nothing was updated; images {', '.join(paths[:4])}{more}"
    )
    if training.refused >= training.recipe.train.max_refused:
        raise RunFailed(
            f"{training.refused} steps in a row were not finite, the last one step {step + 1}; earlier checkpoints "
            f"are intact. Look at {out / 'refused.csv'}, lower optimizer.base_learning_rate or write "
            f"--train.precision 32-true"
        )


def save(training: Training, out: Path, done: int) -> None:
    """Write a checkpoint of `done` finished steps; where that fails, every rank fails."""
    failure = None
    if training.fabric.is_global_zero:
        try:
            checkpoint.save(out / "checkpoints", done, training.state(done), training.recipe.train.keep)
        except RunFailed as error:
            failure = str(error)
    failure = training.fabric.broadcast(failure)
    if failure is not None:
        raise RunFailed(failure)


def finish(training: Training, out: Path, done: int, clock: Clock) -> int:
    """Say what was done, export the encoder if training is complete, write the report; the exit code."""
    from ussl.export import write_encoder

    fabric, complete = training.fabric, done == training.steps
    seconds, waited = clock.total()
    images = (done - training.start) * training.recipe.train.batch_size
    fabric.print(
        f"{'done      ' if complete else 'stopped   '}{done} of {training.steps} steps; {images:,} images in "
        f"{duration(seconds)}, {images / seconds:,.3g} images/s, {waited:.1%} of the time waiting for data, "
        f"peak memory {peak_memory(fabric.device):.1f} GiB"
    )
    if complete and fabric.is_global_zero:
        options = dict(training.recipe.resolved["encoder"])
        encoder = {"name": options.pop("name", None), "options": options}
        extra = {"encoder": encoder, "export": training.export, "weights": training.lineage()}
        write_encoder(training.exported(), out / "encoder", extra)
        print(f"encoder   {out / 'encoder'} ({training.export})", flush=True)
    if fabric.is_global_zero:
        for line in table(out):
            print(line)
        write_report(training, out)
    fabric.barrier()
    if not complete:
        fabric.print(f"interrupted: --resume continues from {out / 'checkpoints'}")
    return 0 if complete else 130


def write_report(training: Training, out: Path) -> None:
    """report.html of what was trained so far."""
    from ussl import report
    from ussl.report import snapshot

    snapshot.save(training, out / "snapshot")
    print(f"report    {report.write(out)}", flush=True)


def progress_bar(start: int, steps: int, first: bool) -> Any:
    """A bar on stderr, on the first rank."""
    from tqdm import tqdm

    every = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=steps, initial=start, unit="step", disable=not first, mininterval=every, dynamic_ncols=True)
