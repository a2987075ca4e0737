"""Whether a run is learning, by numbers of every step: has it collapsed, is it stuck at chance? In plain words."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean

WINDOW = 50  # steps whose mean is judged
SAME = 0.01  # spread below: everything gets almost the same vector (mean cosine about 0.9999)
ONE_DIRECTION = 1.02  # rank below: 99 % of the variance in one direction
STUCK = 0.99  # share of the chance level above which a loss has learned nothing
DIVERGED = 2  # times the chance level
REMEDY = "Change optimizer.base_learning_rate (most often it is too high), its warm-up, or the method's own settings."
ONE_HOT, UNIFORM = 0.001, 0.999  # shares of the largest entropy beyond which a teacher says nothing


def verdict(values: Mapping[str, float], warm: bool = True) -> str | None:
    """A sentence when mean values of some steps show a run that has collapsed or learns nothing, else None.

    Args:
        values: of `ussl.signs`, with "loss", and "chance" and "teacher_entropy" where the method has them.
        warm: the learning rate has passed its peak, so that the loss should have left its chance level.
    """
    return next((sentence for _, sentence in findings(values, warm)), None)


def findings(values: Mapping[str, float], warm: bool) -> Iterator[tuple[str, str]]:
    """Kind and sentence of everything that is wrong, the worst first."""
    spread, target = values.get("feature_spread", 1), values.get("target_spread", 1)
    if spread < SAME:
        yield "features", f"collapsed: every image gets almost the same features (spread {spread:.2g} of 1)"
    if values.get("feature_rank", 2) < ONE_DIRECTION:
        yield "rank", "collapsed to one direction: more than 99 % of the features' variance lies along a line"
    if target < SAME:
        yield "target", f"collapsed: the target is almost the same for every image (spread {target:.2g} of 1)"
    if chance := values.get("chance"):
        yield from _teacher(values.get("teacher_entropy"), chance)
        yield from _loss(values["loss"], chance) if warm else ()


def _teacher(entropy: float | None, chance: float) -> Iterator[tuple[str, str]]:
    """A teacher that says shares over prototypes, by its entropy; chance = the largest there is."""
    if entropy is not None and entropy < ONE_HOT * chance:
        yield "one-hot", f"collapsed: the teacher is certain of everything (entropy {entropy:.2g} of {chance:.4g})"
    if entropy is not None and entropy > UNIFORM * chance:
        told = f"entropy {entropy:.4g} of {chance:.4g}"
        yield "uniform", f"collapsed: the teacher's answer is uniform ({told}): it says nothing"


def _loss(loss: float, chance: float) -> Iterator[tuple[str, str]]:
    if loss > DIVERGED * chance:
        told = f"the loss {loss:.4g} is {loss / chance:.3g} times"
        yield "diverged", f"diverged: {told} that of a network which has learned nothing (chance level {chance:.4g})"
    elif loss > STUCK * chance:
        told = f"the loss {loss:.4g} is that of a network which has learned nothing (chance level {chance:.4g})"
        yield "stuck", f"stuck: {told}"


class Watch:
    """Judges the mean of the last WINDOW steps, at most once in so many, and says every new finding once."""

    def __init__(self, warm_after: int) -> None:
        self.warm_after = warm_after + WINDOW  # steps; the window lies behind the warm-up
        self.values: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self.said: set[str] = set()
        self.waits = WINDOW

    def see(self, done: int, values: Mapping[str, float]) -> str | None:
        """What is wrong after `done` steps, in a sentence; None = nothing new."""
        self.values.append(values)
        self.waits -= 1
        if self.waits > 0:
            return None
        self.waits = WINDOW
        found = dict(findings(means(self.values), warm=done > self.warm_after))
        new = [kind for kind in found if kind not in self.said]
        self.said.update(found)
        return found[new[0]] if new else None


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number that all rows have."""
    rows = list(rows)
    names = set(rows[0]).intersection(*rows)
    return {name: fmean(row[name] for row in rows) for name in names}
