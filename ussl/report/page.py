"""The page itself: everything a run folder holds, arranged for a template that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import math
import os
import shlex
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ussl.errors import RunFailed
from ussl.logs import duration
from ussl.report import folder, health
from ussl.report.charts import Line, chart, history, thin
from ussl.report.folder import Run
from ussl.report.probes import RAW, TRAINED, UNTRAINED, scored
from ussl.report.words import aligned, as_fine, count, number, plain

PARTS = ("source", "augmentation", "encoder", "head", "masking", "target", "objective", "optimizer")
_CHARTS = {"loss": "Loss", "learning_rate": "Learning rate", "gradient_norm": "Gradient norm"}


def write(path: Path) -> Path:
    """Write report.html into the run folder `path`. ValueError = not a run folder; RunFailed = no space, no right."""
    page = render(folder.read(path))
    report, temporary = path / "report.html", path / ".report.html"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, report)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunFailed(f"{report} could not be written: {error.strerror or error}") from error
    return report


def render(run: Run) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "as_fine": as_fine}
    files = resources.files("ussl.report")
    template = environment.from_string((files / "page.html.jinja").read_text(encoding="utf-8"))
    found = health.verdicts(run)
    return template.render(
        style=Markup((files / "page.css").read_text(encoding="utf-8")),
        title=title(run),
        sentence=sentence(run),
        done=run.encoder is not None,
        run=run,
        facts=dict(facts(run)),
        headline=health.headline(found),
        verdicts=found,
        parts={kind: _options(run.recipe[kind]) for kind in PARTS if run.recipe.get(kind)},
        charts=list(charts(run)),
        probe_charts=list(probe_charts(run)),
        scores=scores(run),
        picture=lambda name: _data_uri(run.path / "snapshot" / name),
        environment=dict(environment_rows(run)),
        commands=dict(commands(run)),
    )


def title(run: Run) -> str:
    """The recipe's name, or the folder's where the run does not say it."""
    return str(run.environment.get("recipe") or run.path.resolve().name)


def sentence(run: Run) -> list[tuple[str, bool]]:
    """What was trained on what: pieces of a sentence, those that the recipe names marked."""

    def name(kind: str) -> str:
        return plain((run.recipe.get(kind) or {}).get("name", ""))

    if not name("encoder"):
        return []
    start = (run.recipe["encoder"] or {}).get("init")
    pieces = [("Encoder ", False), (name("encoder"), True)]
    pieces += [(", begun from ", False), (str(start), True)] if start else [(", begun from random weights", False)]
    pieces += [(", pre-trained by ", False), (name("objective"), True)]
    pieces += [(" of ", False), (name("target"), True)] if name("target") else []
    pieces += [(" under ", False), (name("masking"), True), (" masking", False)] if name("masking") else []
    images = run.environment.get("data", {}).get("images")
    where = (run.recipe.get("source") or {}).get("path") or name("source")
    pieces += [(f" on {count(images, 'image')} of " if images else " on ", False), (str(where), True), (".", False)]
    return pieces


def facts(run: Run) -> Iterator[tuple[str, str]]:
    """The numbers at the top."""
    images = run.environment.get("data", {}).get("images")
    if images:
        yield "images", f"{images:,}"
    if run.images_seen:
        yield "images seen", f"{run.images_seen:,}"
    if run.images_seen and images:
        yield "passes over data", number(run.images_seen / images)
    seconds = run.step_seconds
    if len(seconds) and (total := float(seconds[seconds > 0].sum())) > 0:
        yield "training time", duration(total)
        yield "images a second", number(run.images_seen / total)
    loss = run.metrics.get("loss")
    if loss is not None and len(loss):
        yield "last loss", number(loss[-1])


def charts(run: Run) -> Iterator[Markup]:
    """Loss, learning rate, gradient norm and what else the objective logged, by step."""
    names = [*_CHARTS, *run.scalars]
    for name in names:
        if name not in run.metrics or not len(run.metrics["step"]):
            continue
        step, values = run.metrics["step"], run.metrics[name]
        lines = [Line(*thin(step, values))] if name == "learning_rate" else history(step, values)
        yield chart(_CHARTS.get(name, plain(name, capital=True)), lines)


def probe_charts(run: Run) -> Iterator[Markup]:
    """Every measure of the trained encoder by step, with the others as horizontal lines."""
    import numpy as np

    for probe, name in dict.fromkeys((row.probe, row.measure) for row in run.probes if scored(row.measure)):
        rows = [row for row in run.probes if (row.probe, row.measure) == (probe, name)]
        curve = np.array([(row.step, row.value) for row in rows if row.encoder == TRAINED]).reshape(-1, 2)
        levels = {row.encoder: row.value for row in rows if row.encoder != TRAINED}
        order = [encoder for encoder in (RAW, UNTRAINED, *levels) if encoder in levels]
        lines = [Line(curve[:, 0], curve[:, 1], dots=len(curve) < 40)]
        yield chart(
            f"{plain(probe, capital=True)}, {plain(name)}", lines, {encoder: levels[encoder] for encoder in order}
        )


def scores(run: Run) -> dict[str, Any]:
    """The final table: the last value of every measure, a column an encoder."""
    last = health.latest(run.probes)
    present = {encoder for _, _, encoder in last}
    first = [encoder for encoder in (RAW, UNTRAINED, TRAINED) if encoder in present]
    columns = [*first, *(encoder for encoder in dict.fromkeys(key[2] for key in last) if encoder not in first)]
    rows = {}
    for probe, name in dict.fromkeys(key[:2] for key in last if scored(key[1])):
        values = aligned([last.get((probe, name, encoder)) for encoder in columns])
        deviations = [last.get((probe, f"{name}_sd", encoder), math.nan) for encoder in columns]
        rows[probe, name] = [
            (x, f"±{sd:.2f}" if math.isfinite(sd) else "") for x, sd in zip(values, deviations, strict=True)
        ]
    return {"columns": columns, "rows": rows, "deviates": any(key[1].endswith("_sd") for key in last)}


def environment_rows(run: Run) -> Iterator[tuple[str, str]]:
    """What the run depended on, but for the weights."""
    told = run.environment
    named = {"command": "Command", "git": "Commit", "seed": "Seed", "platform": "System", "python": "Python"}
    yield from ((label, str(told[key])) for key, label in named.items() if told.get(key) is not None)
    if told.get("devices"):
        devices = ", ".join(filter(None, told["devices"])) or "CPU"
        threads = told.get("threads")
        yield "Devices", f"{devices}, {count(threads, 'thread')}" if threads else devices
    if told.get("packages"):
        yield "Packages", ", ".join(f"{name} {version}" for name, version in told["packages"].items())
    if digest := told.get("data", {}).get("sha256"):
        yield "Data", f"{count(told['data'].get('images', 0), 'image')}, sha256 {digest}"


def commands(run: Run) -> Iterator[tuple[str, str]]:
    """What to type to do it again, to go on, and to use what came of it."""
    path = shlex.quote(str(run.path))
    if run.recipe_text:
        recipe = shlex.quote(str(run.path / "recipe.yaml"))
        yield "Do it again", f"ussl fit --recipe {recipe} --out {shlex.quote(f'{run.path}-again')}"
        if run.encoder is None:
            yield "Go on where it stopped", f"ussl fit --recipe {recipe} --out {path} --resume"
    if run.encoder is not None:
        lines = ["import ussl", f"encoder = ussl.load({str(run.path)!r})"]
        lines += ['features = encoder.embed(encoder.prepare("picture.png"))  # (1, width)']
        yield "Load the encoder", "\n".join(lines)
    if run.encoder is not None and "architecture" in run.encoder:
        name = f"local-dir:{(run.path / 'encoder').resolve()}"
        yield "Load it in timm", f"import timm\nencoder = timm.create_model({name!r}, pretrained=True)"


def _options(part: Any) -> tuple[str, str]:
    """Name and options of a part in a line."""
    if not isinstance(part, dict):
        return str(part), ""
    options = {key: value for key, value in part.items() if key != "name" and value is not None}
    return str(part.get("name", "")), " · ".join(f"{plain(key)} {_value(value)}" for key, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data_uri(file: Path) -> str | None:
    """A PNG as text; None where it is not there."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" if file.is_file() else None
