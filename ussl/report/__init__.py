"""report.html: one self-contained page that says what a run did and whether it went well."""

from __future__ import annotations

from pathlib import Path


def write(run: Path) -> Path:
    """Write report.html into a run folder, whole or not at all; its path.

    ValueError = not a run folder, or a file in it is damaged; RunFailed = it cannot be written.
    """
    from ussl.report.page import write as write_page

    return write_page(run)
