"""Numbers that say how good predictions are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def metrics(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`accuracy`, `macro_f1` over all classes (0 for a class never predicted and never true) and `auc`.

    truth: (n,) classes as 0, 1, ... · probabilities: (n, classes).
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted, classes = probabilities.argmax(1), range(probabilities.shape[1])
    f1 = f1_score(truth, predicted, labels=list(classes), average="macro", zero_division=0)
    area, _ = auc(truth, probabilities)
    return {"accuracy": float(accuracy_score(truth, predicted)), "macro_f1": float(f1), "auc": area}


def auc(truth: np.ndarray, probabilities: np.ndarray, names: Sequence[str] | None = None) -> tuple[float, str | None]:
    """Area under the ROC curve, and why it is NaN when it is.

    Of two classes it is that of the second's probability; of more, the mean of each class against the rest. Undefined
    when a class is absent.

    truth: (n,) classes as 0, 1, ... · probabilities: (n, classes) · names: of the classes, for the reason.
    """
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    named = [str(c) for c in range(classes)] if names is None else names
    if absent := [named[c] for c in range(classes) if not (truth == c).any()]:
        return float("nan"), f"no AUC: none of the {len(truth)} images is {' or '.join(absent)}"
    one_vs_rest = [roc_auc_score(truth == c, probabilities[:, c]) for c in range(1 if classes == 2 else 0, classes)]
    return float(np.mean(one_vs_rest)), None
