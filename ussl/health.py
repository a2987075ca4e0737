"""Whether a run is learning, by numbers of every step: has it collapsed, is it stuck at chance? In plain words."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean

WINDOW = 50  # steps whose mean is judged
SAME = 0.01  # spread below: everything gets almost the same vector (mean cosine about 0.9999)
ONE_DIRECTION = 1.02  # rank below: 99 % of the variance in one direction
STUCK = 0.99  # share of the chance level above which a loss has learned nothing
REMEDY = "Lower optimizer.base_learning_rate, lengthen its warm-up, or see the method's own settings."
ONE_HOT, UNIFORM = 0.001, 0.999  # shares of the largest entropy beyond which a teacher says nothing


def verdict(values: Mapping[str, float], warm: bool = True) -> str | None:
    """A sentence when mean values of some steps show a run that has collapsed or learns nothing, else None.

    Args:
        values: of `signs`, with "loss", and "chance" and "teacher_entropy" where the method has them.
        warm: the learning rate has passed its peak, so that the loss should have left its chance level.
    """
    if values.get("feature_spread", 1) < SAME:
        return f"collapsed: every image gets almost the same features (spread {values['feature_spread']:.2g} of 1)"
    if values.get("feature_rank", 2) < ONE_DIRECTION:
        return "collapsed to one direction: more than 99 % of the features' variance lies along a line"
    if values.get("target_spread", 1) < SAME:
        return f"collapsed: the target is almost the same for every image (spread {values['target_spread']:.2g} of 1)"
    chance, loss = values.get("chance"), values["loss"]
    if chance and (teacher := _teacher(values, chance)):
        return teacher
    if warm and chance and loss > STUCK * chance:
        return f"stuck: the loss {loss:.4g} is that of a network which has learned nothing (chance level {chance:.4g})"
    return None


def _teacher(values: Mapping[str, float], chance: float) -> str | None:
    """What is wrong with a teacher that says shares over prototypes, by its entropy; chance = the largest there is."""
    entropy = values.get("teacher_entropy")
    if entropy is None:
        return None
    if entropy < ONE_HOT * chance:
        return f"collapsed: the teacher is certain of everything (entropy {entropy:.2g} of {chance:.4g})"
    if entropy > UNIFORM * chance:
        return f"collapsed: the teacher's answer is uniform (entropy {entropy:.4g} of {chance:.4g}): it says nothing"
    return None


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
        found = verdict(means(self.values), warm=done > self.warm_after)
        if found is None or (kind := found.partition(" (")[0]) in self.said:
            return None
        self.said.add(kind)
        return found


def means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every number that all rows have."""
    rows = list(rows)
    names = set(rows[0]).intersection(*rows)
    return {name: fmean(row[name] for row in rows) for name in names}
