"""Lines that a run says once, however often their reason comes up."""

from __future__ import annotations

import sys

from ussl.distributed import rank

_said: set[str] = set()


def once(text: str) -> None:
    """Print `text` on stderr as a note, one time a process and only on rank 0."""
    if text in _said or rank() != 0:
        return
    _said.add(text)
    print(f"note      {text}", file=sys.stderr, flush=True)
