"""How a run that cannot go on leaves the program. A user's mistake is a ValueError: one line, exit code 2."""

from __future__ import annotations


class RunFailed(RuntimeError):
    """A run that could not go on (no space left, non-finite steps, ...), said in one line. Exit code 1."""
