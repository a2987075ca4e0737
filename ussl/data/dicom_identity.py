"""Who a DICOM picture is of, without saying it: keyed hashes of identities, and words that name nobody."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from ussl.notice import once

VARIABLE = "USSL_KEY_FILE"
_LEAST = 16  # bytes of a key: fewer could be guessed, and with the key every identity
_DIGITS = 16  # hexadecimal, of a hash: 64 bits
MODALITIES = frozenset({"US", "IVUS", "IVOCT", "OT", "XC", "ES", "SC", "CT", "MR", "MG", "DX", "CR", "PT", "NM"})
TRANSDUCERS = frozenset(  # the terms that DICOM defines for Transducer Type
    (
        *("SECTOR_PHASED", "SECTOR_MECH", "SECTOR_ANNULAR", "VECTOR_PHASED", "LINEAR", "CURVED_LINEAR"),
        *("SINGLE_CRYSTAL", "SPLIT_XTAL_CWD", "IV_PHASED", "IV_ROT_XTAL", "IV_ROT_MIRROR", "ENDOCAV_PA"),
        *("ENDOCAV_MECH", "ENDOCAV_CLA", "ENDOCAV_AA", "ENDOCAV_LINEAR"),
    )
)
NAMING = (  # the elements that a scanner's model is compared with, since they may name somebody
    *("PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "AccessionNumber"),
    *("InstitutionName", "InstitutionAddress", "ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName"),
    *("PhysiciansOfRecord", "StudyID"),
)


def load_key(path: str | os.PathLike[str] | None = None) -> bytes:
    """The secret in the file `path`, else in that of USSL_KEY_FILE, else the user's own, made where there is none.

    Raises:
        ValueError: a named file is not there, cannot be read or is too short; the user's folder cannot be written.
    """
    named = path if path is not None else os.environ.get(VARIABLE)
    if named:
        return _read(Path(os.path.abspath(Path(named).expanduser())))
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ussl"
    own = folder / "patient.key"
    try:
        if not own.exists():
            _create(own)
    except OSError as error:
        reason = (error.strerror or "cannot be written").lower()
        raise ValueError(f"{own}: {reason}; name a key for patients: --key FILE, or {VARIABLE}=FILE") from None
    return _read(own)


def pseudonym(key: bytes, kind: str, *parts: str) -> str:
    """16 hexadecimal digits of HMAC-SHA256: the same for the same identity and key, and without the key of nobody."""
    message = "\0".join([kind, *parts]).encode("utf-8", "surrogateescape")
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:_DIGITS]


def term(value: str, known: frozenset[str]) -> str | None:
    """`value` where it is one of the `known` terms, so that nothing else can be written in its place."""
    word = "_".join(value.upper().split())
    return word if word in known else None


def model_name(value: str, identities: Iterable[str]) -> str | None:
    """The model of a scanner; None where the text is no short name, or shares a word with somebody's identity."""
    text = " ".join(value.split())
    if not re.fullmatch(r"[\w .,/+()-]{1,40}", text):
        return None
    folded = text.casefold()
    words = {word for identity in identities for word in re.findall(r"[^\W_]{3,}", identity.casefold())}
    return None if any(word in folded for word in words) else text


def _read(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ValueError(
            f"{path}: {reason}; the key that hashes patients is a file of {_LEAST} bytes or more"
        ) from None
    if len(key) < _LEAST:
        raise ValueError(f"{path}: {len(key)} bytes are too short for a key: `openssl rand -hex 32 > FILE` makes one")
    return key


def _create(path: Path) -> None:
    """A new key, whole or not at all, and one only however many processes come at once."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # fails where another was quicker, whose key then counts
        except FileExistsError:
            return
        once(f"new key {path} hashes patients: keep it, since only the same key gives the same patients, and secret")
    finally:
        part.unlink(missing_ok=True)
