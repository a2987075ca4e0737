"""What may be wrong with a corpus: copies, contradictory labels, patients on both sides, stained pictures.

Each check returns findings, one a picture and reason; none compares every picture with every other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ussl.data.duplicates import near, nearest

Row = Mapping[str, Any]
Rows = Sequence[Row]
SIDES = ("test", "val", "train")  # where copies lie on several, they stay on the first of these
MEANING = {  # every finding, and what it is of a picture, in the order of a report
    "unreadable": "cannot be read",
    "blank": "show nothing",
    "tiny": "have a side below 32 pixels",
    "contradictory": "have the same pixels as one with another label",
    "duplicate": "have the same pixels as another",
    "task_test": "have the same pixels as a test picture of a task",
    "task_test_near": "are nearly a test picture of a task",
    "task_test_patient": "are of a patient in the test split of a task",
    "duplicate_across": "have the same pixels as one in another split",
    "near_across": "are nearly one in another split",
    "patient_across": "are of a patient who is also in another split",
    "contradictory_near": "are nearly one with another label",
    "near_duplicate": "are nearly another",
    "task_val": "are, or nearly are, a validation picture of a task, or of its patient",
    "burned_in": "have text, rulers or logos outside of the scan",
    "region_outside": "have a DICOM region outside of the picture",
    "mask_unusable": "have a mask that cannot be read, or is of another size",
    "no_patient": "have no patient, so that a split cannot keep theirs together",
}


@dataclass(frozen=True)
class Finding:
    """One thing about one picture."""

    position: int  # of the row
    finding: str  # a word of MEANING
    other: str = ""  # the picture it is about as well
    detail: str = ""


def flagged(rows: Rows, wrong: Mapping[int, str]) -> Iterator[Finding]:
    """What `ussl data index` flagged, pictures that cannot be read (by position, why), rows without patient."""
    for i, row in enumerate(rows):
        if i in wrong:
            yield Finding(i, "unreadable", detail=wrong[i])
        for word in words(row):
            if word in ("blank", "tiny", "burned_in", "region_outside", "mask_unusable"):
                yield Finding(i, word)
        if not row.get("patient"):
            yield Finding(i, "no_patient")


def copies(rows: Rows) -> Iterator[Finding]:
    """Exact copies: all but the one that stays, contradictory labels, and copies in several splits."""
    for members in _by(rows, lambda row: row.get("digest")).values():
        if len(members) < 2 or "blank" in words(rows[members[0]]):
            continue
        kept = min(members, key=lambda i: (_side(rows[i]), not rows[i].get("label"), i))
        labels = sorted({str(rows[i]["label"]) for i in members if rows[i].get("label")})
        sides = {rows[i].get("split") for i in members}
        for i in members:
            other = kept if i != kept else next(j for j in members if j != i)
            if len(labels) > 1:
                yield Finding(i, "contradictory", name(rows[other]), f"labels {', '.join(labels)}")
            if i != kept:
                yield Finding(i, "duplicate", name(rows[kept]))
                if len(sides) > 1 and rows[i].get("split") != rows[kept].get("split"):
                    detail = f"{rows[i].get('split') or 'no split'} and {rows[kept].get('split') or 'no split'}"
                    yield Finding(i, "duplicate_across", name(rows[kept]), detail)


def alike(rows: Rows) -> Iterator[Finding]:
    """Near-duplicates: all but the first of a cluster, and those with another label."""
    clusters: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(near(hashes(rows)).tolist()):
        clusters[number].append(i)
    for members in clusters.values():
        different = {rows[i].get("digest") for i in members}
        if len(different) < 2:
            continue
        labels = sorted({str(rows[i]["label"]) for i in members if rows[i].get("label")})
        for i in members:
            other = next(j for j in members if rows[j].get("digest") != rows[i].get("digest"))
            if i != members[0] and rows[i].get("digest") != rows[members[0]].get("digest"):
                yield Finding(i, "near_duplicate", name(rows[members[0]]), f"{len(members)} alike")
            if len(labels) > 1:
                yield Finding(i, "contradictory_near", name(rows[other]), f"labels {', '.join(labels)}")


def across(rows: Rows) -> Iterator[Finding]:
    """Near-duplicates and patients in several splits: the pictures on the side that gives way (train, then val)."""
    sides = np.array([_side(row) for row in rows])
    there, bits = nearest(hashes(rows), sides, lambda own, other: (other < own) & (own < len(SIDES)))
    for i in np.flatnonzero(there >= 0).tolist():
        other = rows[there[i]]
        if other.get("digest") != rows[i].get("digest"):
            detail = f"{rows[i]['split']} and {other['split']}, {bits[i]} bits apart"
            yield Finding(i, "near_across", name(other), detail)
    for members in _by(rows, patient).values():
        first = min(members, key=lambda i: sides[i])
        for i in members:
            if sides[first] < sides[i] < len(SIDES):
                detail = f"{rows[i]['split']} and {rows[first]['split']}"
                yield Finding(i, "patient_across", name(rows[first]), detail)


def against(rows: Rows, task: Rows, called: str) -> Iterator[Finding]:
    """Pictures of the corpus that are in a task's test split, or its validation split, exactly, nearly or by patient.

    A task without any split is test as a whole.
    """
    whole = not any(row.get("split") for row in task)
    for side in ("test", "val"):
        held = [row for row in task if whole or row.get("split") == side] if side == "test" or not whole else []
        for i, how, other, detail in _held_out(rows, held):
            word = f"task_test{how}" if side == "test" else "task_val"
            yield Finding(i, word, name(other), f"{called}{detail}")


def _held_out(rows: Rows, held: Rows) -> Iterator[tuple[int, str, Row, str]]:
    """Of each picture the strongest tie to one that is held out: position, how, that one, and in words."""
    if not held:
        return
    digests = {row["digest"]: row for row in held if row.get("digest")}
    patients = {key: row for row in held if (key := patient(row)) is not None}
    both = [*rows, *held]
    classes = np.repeat([1, 0], [len(rows), len(held)])
    there, bits = nearest(hashes(both), classes, lambda own, other: own > other)
    for i, row in enumerate(rows):
        if row.get("digest") in digests:
            yield i, "", digests[row["digest"]], ""
        elif there[i] >= 0:
            yield i, "_near", both[there[i]], f", {bits[i]} bits apart"
        elif (key := patient(row)) in patients:
            yield i, "_patient", patients[key], ""


def words(row: Row) -> list[str]:
    """The words of a row's flag."""
    return [word for word in str(row.get("flag") or "").split(";") if word]


def hashes(rows: Rows) -> list[str | None]:
    """Of every picture that shows something."""
    return [None if "blank" in words(row) else row.get("hash") for row in rows]


def patient(row: Row) -> tuple[str, str] | None:
    """Source and patient: numbers of patients say nothing across data sets."""
    return (str(row.get("source")), str(row["patient"])) if row.get("patient") else None


def name(row: Row) -> str:
    """The picture's path, and its frame where it is one of several."""
    return f"{row['path']}#{row['frame']}" if row.get("frame") else str(row["path"])


def _side(row: Row) -> int:
    """The row's place in SIDES, behind them without a split."""
    return SIDES.index(row["split"]) if row.get("split") in SIDES else len(SIDES)


def _by(rows: Rows, key: Callable[[Row], Any]) -> dict[Any, list[int]]:
    """Positions of the rows that have a key, by key."""
    found: dict[Any, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if (value := key(row)) is not None:
            found[value].append(i)
    return found


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """By picture, then in the order of MEANING."""
    place = {word: i for i, word in enumerate(MEANING)}
    return sorted(findings, key=lambda one: (one.position, place[one.finding]))
