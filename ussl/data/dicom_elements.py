"""The elements of a DICOM header, read without a word of them getting out.

What pydicom says of a broken file may quote a patient's name, so that its messages, warnings and logs end here.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})  # 4 bytes of length


class Unusable(ValueError):
    """Why a file cannot be used, in words that quote nothing of it."""


@contextmanager
def plain_words(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong inside as one ValueError that names the file and quotes nothing of it; pydicom is silent."""
    try:
        with _silent():
            yield
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # parsers raise anything on files from outside; OSError with errno is the system's
        system = isinstance(error, OSError) and error.strerror
        reason = error.strerror.lower() if system else "damaged: it cannot be read as DICOM"  # type: ignore[attr-defined]
        raise ValueError(f"{path}: {reason}") from None


def text(tags: Any, keyword: str) -> str:
    """An element as one line of text; empty where it is missing or malformed."""
    try:
        return " ".join(" ".join(str(value) for value in _values(tags, keyword)).replace("\0", " ").split())
    except Exception:  # of a value that cannot be converted
        return ""


def numbers(tags: Any, keyword: str) -> list[float]:
    """The numbers of an element; empty where it is missing or malformed."""
    try:
        return [float(value) for value in _values(tags, keyword)]
    except Exception:  # of a value that cannot be converted
        return []


def items(tags: Any, keyword: str) -> list[Any]:
    """The data sets of a sequence; empty where it is missing or malformed."""
    try:
        return list(tags.get(keyword) or [])
    except Exception:  # of a value that cannot be converted
        return []


def whole(tags: Any, keyword: str) -> int | None:
    """The whole number of an element; None where it is missing or malformed."""
    found = numbers(tags, keyword)
    return int(found[0]) if len(found) == 1 and found[0] == int(found[0]) else None


def _values(tags: Any, keyword: str) -> list[Any]:
    value = tags.get(keyword)
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return [one for one in (value if several else [value]) if one is not None]


@contextmanager
def _silent() -> Iterator[None]:
    """pydicom quotes values in warnings and logs."""
    try:
        import pydicom
    except ImportError:
        raise Unusable("reading DICOM needs a package: pip install 'ultrasound-ssl[dicom]'") from None
    logger = logging.getLogger("pydicom")
    was = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was
