"""`ussl data audit`: what is wrong with a corpus, said, listed in a table, and left out where that is wanted."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ussl.data import columns, findings, manifest
from ussl.data.completing import complete
from ussl.data.findings import MEANING, Finding, Rows
from ussl.data.summary import aligned, replace

DROPPED = (  # the findings for which --drop leaves a picture out; the others are for people to judge
    *("unreadable", "blank", "tiny", "contradictory", "duplicate"),
    *("task_test", "task_test_near", "task_test_patient", "near_across", "patient_across"),
)
EXAMPLES = 2  # of each finding, in what is printed


@dataclass
class Audit:
    """The rows of a manifest, and what was found of them."""

    path: Path
    rows: list[dict[str, Any]]
    found: list[Finding]
    tasks: dict[str, str]  # a task's manifest -> what was compared

    @property
    def counts(self) -> Counter[str]:
        """Pictures by finding."""
        seen = {(one.position, one.finding) for one in self.found}
        return Counter(word for _, word in seen)

    @property
    def dropped(self) -> dict[int, str]:
        """Positions of the pictures to leave out, with the weightiest reason of each."""
        reasons: dict[int, str] = {}
        for one in self.found:  # the weightiest of a picture comes first
            if one.finding in DROPPED:
                reasons.setdefault(one.position, one.finding)
        return reasons

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The rows that `--drop` leaves; those whose copies are gone are not duplicates any more."""
        gone = self.dropped
        rows = []
        for i, row in enumerate(self.rows):
            if i not in gone:
                flag = ";".join(word for word in findings.words(row) if word != "duplicate")
                rows.append({**row, "flag": flag or None})
        return rows


def command(args: argparse.Namespace, rest: Sequence[str] = ()) -> int:
    """Audit `args.manifest`; the exit code: findings are not a failure."""
    path = columns.located(args.manifest)
    clean, report = _outputs(path, args)
    result = audit(path, [columns.located(task) for task in args.task], args.workers)
    replace(report, _table(result).encode())
    if args.drop:
        if not result.kept:
            raise ValueError(
                f"{path}: no picture is left without these findings, so nothing was written; see {report}"
            )
        manifest.write(result.kept, clean)
    if args.json:
        print(json.dumps(as_json(result), indent=2))
        return 0
    for line in lines(result):
        print(line)
    print(f"\nlisted in {report}")
    if args.drop:
        print(f"written:  {clean}, {len(result.kept):,} pictures")
    return 0


def audit(path: Path, tasks: Sequence[Path] = (), workers: int | None = None) -> Audit:
    """What is to be said of a manifest, alone and beside the manifests of tasks.

    Rows without fingerprint are read first, in `workers` processes (None = one a core).

    Raises:
        ValueError: a manifest that is not one.
    """
    rows = manifest.read(path)
    wrong = complete(rows, workers)
    found = [*findings.flagged(rows, wrong), *findings.copies(rows), *findings.alike(rows), *findings.across(rows)]
    compared = {}
    for task in tasks:
        held = manifest.read(task)
        lost = complete(held, workers)
        compared[str(task)] = _compared(held, lost)
        found += findings.against(rows, held, str(task))
    return Audit(path, rows, findings.sorted_findings(found), compared)


def lines(result: Audit) -> Iterator[str]:
    """What is printed."""
    counts, gone = result.counts, result.dropped
    yield f"{result.path}: {len(result.rows):,} pictures"
    for task, compared in result.tasks.items():
        yield f"compared with {task}: {compared}"
    yield ""
    table = [["finding", "pictures", "dropped", "they"]]
    for word, meaning in MEANING.items():
        if counts[word]:
            leaves = f"{sum(1 for reason in gone.values() if reason == word):,}" if word in DROPPED else "-"
            table.append([word, f"{counts[word]:,}", leaves, meaning])
    if len(table) == 1:
        yield "nothing was found"
    else:
        yield from _aligned_middle(table)
        yield ""
        yield from _examples(result)
    yield ""
    yield (
        f"{len(result.rows):,} pictures = {len(result.rows) - len(gone):,} that --drop keeps + {len(gone):,} that it "
        "drops, each counted once, under its first reason"
    )
    if counts["burned_in"]:
        yield "burned-in text stays flagged: `ussl data pack --scan mask` blacks it out"
    yield ""
    yield from aligned(class_table(result.rows), 1)


def class_table(rows: Rows) -> list[list[str]]:
    """Classes by split: images and patients of each."""
    splits = [side for side in ("train", "val", "test") if any(row.get("split") == side for row in rows)]
    splits += sorted({str(row["split"]) for row in rows if row.get("split")} - set(splits))
    if any(not row.get("split") for row in rows):
        splits.append("")
    images: Counter[tuple[str, str]] = Counter()
    patients: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for row in rows:
        cell = (_class(row), row.get("split") or "")
        images[cell] += 1
        patients[cell].add(findings.patient(row))
    classes = sorted({kind for kind, _ in images})
    table = [["images (patients)", *(split or "no split" for split in splits)]]
    for kind in classes:
        cells = [(images[kind, split], len(patients[kind, split] - {None})) for split in splits]
        table.append([kind, *(f"{count:,} ({people:,})" for count, people in cells)])
    return table


def as_json(result: Audit) -> dict[str, Any]:
    """What was found, for programs."""
    gone = Counter(result.dropped.values())
    return {
        "manifest": str(result.path),
        "pictures": len(result.rows),
        "findings": {word: result.counts[word] for word in MEANING},
        "dropped": {word: gone[word] for word in DROPPED},
        "kept": len(result.rows) - len(result.dropped),
        "tasks": result.tasks,
    }


def _outputs(path: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Where the clean manifest and the report go. ValueError: options without effect, or the manifest itself."""
    if args.out and not args.drop:
        raise ValueError(f"--out {args.out} is where --drop writes the clean manifest: write --drop too")
    clean = Path(os.path.abspath(args.out)) if args.out else path.with_name(f"{path.stem}.clean.parquet")
    report = Path(os.path.abspath(args.report)) if args.report else path.with_name(f"{path.stem}.audit.csv")
    for option, file, ends in (("--out", clean, manifest.SUFFIXES), ("--report", report, (".csv",))):
        if file.suffix.lower() not in ends:
            raise ValueError(f"{option} {file}: write a name with {' or '.join(ends)} at its end")
        if file == path:
            raise ValueError(f"{option} {file} is the manifest that is audited: write another name")
    if clean == report:
        raise ValueError(f"--out and --report are both {report}: write two names")
    return clean, report


def _table(result: Audit) -> str:
    """The report as CSV: one line a finding."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["path", "frame", "finding", "with", "detail", "dropped"])
    gone = result.dropped
    for one in result.found:
        row = result.rows[one.position]
        leaves = "yes" if gone.get(one.position) == one.finding else ""
        table.writerow([row["path"], row.get("frame", ""), one.finding, one.other, one.detail, leaves])
    return text.getvalue()


def _compared(held: Rows, lost: Mapping[int, str]) -> str:
    """What of a task's manifest the corpus was compared with."""
    splits = Counter(row.get("split") or "" for row in held)
    text = (
        f"{splits['test']:,} test and {splits['val']:,} validation pictures"
        if set(splits) != {""}
        else f"all {len(held):,} pictures, since it has no column split"
    )
    return f"{text}; {len(lost):,} of them cannot be read" if lost else text


def _aligned_middle(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of text, two numbers and text."""
    for numbers, row in zip(aligned([row[:3] for row in table], 1), table, strict=True):
        yield f"{numbers}  {row[3]}"


def _examples(result: Audit) -> Iterator[str]:
    """A few pictures of each finding."""
    shown: Counter[str] = Counter()
    for one in sorted(result.found, key=lambda one: list(MEANING).index(one.finding)):
        if one.finding == "no_patient" or shown[one.finding] >= EXAMPLES:
            continue
        shown[one.finding] += 1
        more = "; ".join(filter(None, (one.other, one.detail)))
        yield f"{one.finding}: {findings.name(result.rows[one.position])}{f' ({more})' if more else ''}"


def _class(row: Mapping[str, Any]) -> str:
    """Organ and label of a row, as far as they are said."""
    said = [str(row[column]) for column in ("organ", "label") if row.get(column)]
    return " / ".join(said) or "not said"
