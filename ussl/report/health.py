"""Whether a run is healthy, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ussl.health import REMEDY, WINDOW, verdict
from ussl.report.charts import running_mean
from ussl.report.folder import Run
from ussl.report.probes import RAW, TRAINED, UNTRAINED, Measurement, scored
from ussl.report.words import count, measure, number, percent, plain

ENOUGH = 20  # steps from which a loss is judged
STARVING = 0.2  # share of the time spent waiting for data
EQUAL = 0.02  # scores that differ by less are called equal: a probe is one measurement
DIRECTIONS = "effective_rank_centred"
SPREAD = {"relative_std", "mean_cosine", DIRECTIONS, "first_component", "images", "width"}  # what a verdict takes

_ORDER = ("bad", "warn", "good", "open")
_HEADLINES = {
    "bad": "Something is wrong",
    "warn": "Worth a look",
    "good": "Healthy",
    "open": "Too short to judge",
}


@dataclass(frozen=True)
class Verdict:
    """One finding. `level`: good, warn, bad, or open where there is too little to judge by."""

    level: str
    text: str
    advice: str = ""


def verdicts(run: Run) -> list[Verdict]:
    """All findings about a run, those about its training first."""
    scores = list(_scores(run.probes))
    if run.steps < ENOUGH:  # an encoder that has hardly begun cannot have failed
        scores = [replace(score, level="open") for score in scores]
    found = [_finite(run), _loss(run), _learning(run), _data(run), _collapse(run.probes), *scores]
    return [verdict for verdict in found if verdict is not None]


def headline(found: list[Verdict]) -> Verdict:
    """The worst of the findings in three words."""
    level = min((verdict.level for verdict in found), key=_ORDER.index, default="open")
    return Verdict(level, _HEADLINES[level])


def _finite(run: Run) -> Verdict | None:
    """Whether losses and gradients were numbers."""
    if not run.steps:
        return None
    table = run.metrics
    numbers = [table[name] for name in ("loss", "gradient_norm") if name in table]
    broken = {int(step) for column in numbers for step in table["step"][~np.isfinite(column)]} | run.refused.keys()
    if not broken:
        return Verdict("good", f"Loss and gradients were finite in all {count(run.steps, 'step')}.")
    several = len(broken) > 1
    text = (
        f"{len(broken):,} of {count(run.steps, 'step')} had a loss or gradient that was not finite and changed "
        f"nothing, {'the first of them' if several else 'namely'} step {min(broken):,}."
    )
    named = "refused.csv names their images. " if run.refused else ""
    advice = f"{named}Lower optimizer.base_learning_rate, or train with --train.precision 32-true."
    serious = len(broken) > 0.1 * run.steps or run.steps in broken
    return Verdict("bad" if serious else "warn", text, advice)


def _loss(run: Run) -> Verdict | None:
    """Whether the loss fell, by its mean over the first and the last tenth of the run."""
    loss = run.metrics.get("loss", np.zeros(0))
    loss = loss[np.isfinite(loss)]
    if len(loss) < ENOUGH:
        few = count(len(loss), "step")
        return Verdict("open", f"The loss cannot be judged by {few}; {ENOUGH} would do.") if len(loss) else None
    tenth = max(len(loss) // 10, 5)
    early, late = loss[:tenth].mean(), loss[-tenth:].mean()
    noise = 2 * np.hypot(loss[:tenth].std(), loss[-tenth:].std()) / tenth**0.5
    lowest = np.nanmin(running_mean(loss, tenth // 2))
    span = f"from {number(early)} to {number(late)}"
    if early - lowest > 2 * noise and late - lowest > 0.3 * (early - lowest):
        text = f"The loss fell from {number(early)} to {number(lowest)}, but rose again to {number(late)}."
        return Verdict("bad" if late > early else "warn", text, "Lower optimizer.base_learning_rate.")
    if late - early > noise:
        return _rose(run, span)
    if early - late <= noise:
        advice = "Train for longer, or raise optimizer.base_learning_rate."
        return Verdict("warn", f"The loss hardly moved: {span}.", advice)
    change = f", by {percent((early - late) / early)}" if late > 0 else ""
    return Verdict("good", f"The loss fell {span}{change}.")


def _rose(run: Run, span: str) -> Verdict:
    target = (run.recipe.get("target") or {}).get("name", "")
    if run.environment.get("export") == "teacher" or "ema" in target.split("_"):
        text = f"The loss rose {span}. With a teacher that moves along with the student that is no fault in itself."
        return Verdict("open", text, "Go by the probes.")
    return Verdict("bad", f"The loss rose {span}.", "Lower optimizer.base_learning_rate, or lengthen its warm-up.")


def _learning(run: Run) -> Verdict | None:
    """What the numbers of the last steps say of a collapse, or of a loss that stays at chance."""
    if run.steps < ENOUGH or "feature_spread" not in run.metrics:
        return None
    last = {name: float(column[-WINDOW:].mean()) for name, column in run.metrics.items()}
    if ill := verdict(last):
        return Verdict("bad", f"The training {'is' if ill.startswith('stuck') else 'has'} {ill}.", REMEDY)
    told = f"features differ (spread {number(last['feature_spread'])} of 1, rank {number(last['feature_rank'])})"
    if "chance" in last:
        told += f"; the loss is {percent(last['loss'] / last['chance'])} of its chance level {number(last['chance'])}"
    return Verdict("good", f"While training, {told}.")


def _data(run: Run) -> Verdict | None:
    """How long training waited for pictures; the first step, in which readers start, is left out of a longer run."""
    share = waiting(run)
    if share is None:
        return None
    text = f"{percent(share)} of the time was spent waiting for data."
    if share <= STARVING:
        return Verdict("good", text)
    loader = run.recipe.get("loader", {})
    advice = (
        f"Read with more processes (--loader.workers, now {loader.get('workers', 'auto')}) or smaller pictures "
        f"(--loader.canvas, now {loader.get('canvas', 512)} pixels)."
    )
    return Verdict("warn", text, advice)


def waiting(run: Run) -> float | None:
    """The share of the time spent waiting for data; None where it was not measured."""
    seconds, share = run.step_seconds, run.metrics.get("data_wait")
    if share is None:
        return None
    first = int(len(seconds) >= ENOUGH)
    seconds, share = seconds[first:], share[first:]
    known = np.isfinite(seconds) & np.isfinite(share)
    return float((seconds * share)[known].sum() / seconds[known].sum()) if known.any() else None


def _collapse(measured: list[Measurement]) -> Verdict | None:
    """Whether the encoder still tells pictures apart, where a probe measured the spread of its features."""
    last = latest(measured)
    for probe in dict.fromkeys(key[0] for key in last):
        numbers = {name: value for (p, name, encoder), value in last.items() if (p, encoder) == (probe, TRAINED)}
        if not numbers.keys() >= SPREAD:
            continue
        from ussl.evaluate.spread import verdict as spread_verdict

        if collapse := spread_verdict(numbers):
            return Verdict("bad", f"The encoder has {collapse}.", "Lower optimizer.base_learning_rate.")
        before = last.get((probe, DIRECTIONS, UNTRAINED))
        told = f" (untrained {number(before)})" if before is not None else ""
        directions = f"its features differ in about {number(numbers[DIRECTIONS])} directions{told}"
        return Verdict("good", f"The encoder has not collapsed: {directions}.")
    return None


def _scores(measured: list[Measurement]) -> Iterator[Verdict]:
    """One finding a probe, by its macro F1 or else its first measure: trained against untrained and raw pixels."""
    last = latest(row for row in measured if scored(row.measure))
    for probe in dict.fromkeys(key[0] for key in last):
        names = list(dict.fromkeys(key[1] for key in last if key[0] == probe))
        name = "macro_f1" if "macro_f1" in names else names[0]
        scores = {encoder: value for (p, m, encoder), value in last.items() if (p, m) == (probe, name)}
        if TRAINED in scores and UNTRAINED in scores and not SPREAD & set(names):
            yield _compared(f"{plain(probe, capital=True)}, {plain(name)}", scores)


def _compared(what: str, scores: dict[str, float]) -> Verdict:
    trained = scores[TRAINED]
    gains = {name: trained - scores[name] for name in (UNTRAINED, RAW) if name in scores}
    told = " and ".join(f"{_against(gain)} {_NAMES[name]} ({measure(scores[name])})" for name, gain in gains.items())
    text = f"{what}: {measure(trained)}, {told}."
    if not gains[UNTRAINED] >= EQUAL:
        return Verdict("bad", text, "By this probe pre-training has taught the encoder nothing so far.")
    if not min(gains.values()) >= EQUAL:
        return Verdict("warn", text, "It has learned something, but the pictures' own pixels still do as well.")
    return Verdict("good", text)


_NAMES = {UNTRAINED: "the untrained encoder", RAW: "raw pixels"}


def _against(gain: float) -> str:
    if abs(gain) < EQUAL:
        return "no different from"
    return f"better by {measure(gain)} than" if gain > 0 else f"worse by {measure(abs(gain))} than"


def latest(measured: Iterable[Measurement]) -> dict[tuple[str, str, str], float]:
    """The last value of every (probe, measure, encoder), in the order they first came."""
    return {(row.probe, row.measure, row.encoder): row.value for row in measured}
