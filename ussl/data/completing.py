"""Fingerprints for the rows of a manifest that have none: their pictures are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ussl.data.fingerprint import BITS, fingerprint
from ussl.data.measure import joined, reason
from ussl.data.walking import Lost, cores, each
from ussl.parts import Source


def complete(
    rows: Sequence[dict[str, Any]], workers: int | None = None, plugins: Sequence[str] = ()
) -> dict[int, str]:
    """Read the pictures of rows without digest or hash, in processes, and fill in what `fingerprint` says of them.

    Columns that a row has stay as they are, but for digest, hash and flag, which the words found are joined to.
    Returns what is wrong with pictures that cannot be read, by the row's position; these rows are left as they are.

    Args:
        rows: of a manifest, with absolute paths.
        workers: processes; None = one a core.
        plugins: files with the readers that rows name.

    Raises:
        ValueError: a reader that is not there; fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}: at least one process is needed")
    lacking = [i for i, row in enumerate(rows) if not row.get("digest") or len(row.get("hash") or "") != BITS // 4]
    if not lacking:
        return {}
    from tqdm import tqdm

    look = _Look(rows, _readers([rows[i] for i in lacking], plugins))
    results = each(look, lacking, min(workers or cores(), len(lacking)))
    wrong = {}
    for number, result in tqdm(results, total=len(lacking), unit=" pictures", disable=None):
        problem = result.reason if isinstance(result, Lost) else _fill(rows[lacking[number]], json.loads(result))
        if problem:
            wrong[lacking[number]] = problem
    return dict(sorted(wrong.items()))


class _Look:
    """What the picture of a row says, as JSON, in a worker."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], readers: Mapping[str, Source]) -> None:
        self.rows, self.readers = rows, readers

    def __call__(self, position: int, alive: Callable[[], None]) -> bytes:
        row = self.rows[position]
        try:
            seen = fingerprint(self.readers[_reader_of(row)].read(row))
        except Exception as error:  # whatever a reader raises is said of this picture
            seen = {"unreadable": reason(error, str(row["path"]))}
        return json.dumps(seen).encode()


def _fill(row: dict[str, Any], seen: dict[str, Any]) -> str | None:
    """Put into the row what was seen, or say why nothing was."""
    if "unreadable" in seen:
        return seen["unreadable"]
    sizes = {name: value for name, value in seen.items() if row.get(name) is None}
    row.update(sizes, digest=seen["digest"], hash=seen["hash"], flag=joined(row.get("flag"), seen["flag"]))
    return None


def _readers(rows: Sequence[Mapping[str, Any]], plugins: Sequence[str]) -> dict[str, Source]:
    """The sources that the rows name, by name."""
    from ussl.plugins import Host
    from ussl.recipe import choose

    host = Host(plugins)
    return {
        name: choose(host, "source", "reader", {"name": name}).build() for name in sorted(set(map(_reader_of, rows)))
    }


def _reader_of(row: Mapping[str, Any]) -> str:
    return row.get("reader") or "images"
