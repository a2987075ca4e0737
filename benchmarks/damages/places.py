"""Names and places that are not plain files, or whose names tables and terminals take badly."""

from __future__ import annotations

import os

from damages.kinds import INDEXED, Sample, as_root, damage

MISSING = "rejected: no such file or directory"
LOOP = "rejected: too many levels of symbolic links"
SPECIAL = "rejected: not a file: .+"


@damage("images", "rejected: permission denied", end=".png", skip=as_root())
def without_permission(some: Sample) -> None:
    some.path.write_bytes(some.file("PNG"))
    some.path.chmod(0)


@damage("images", MISSING, end=".png")
@damage("dicom", MISSING, end=".dcm")
@damage("video", MISSING, end=".mp4")
def link_to_nowhere(some: Sample) -> None:
    some.path.symlink_to(some.path.with_name(f"gone {some.number}"))


@damage("images", LOOP, end=".png")
@damage("dicom", LOOP, end=".dcm")
@damage("video", LOOP, end=".avi")
def link_to_itself(some: Sample) -> None:
    some.path.symlink_to(some.path.name)


@damage("images", SPECIAL, end=".png")
@damage("dicom", SPECIAL, end=".dcm")
@damage("video", SPECIAL, end=".mp4")
def pipe_or_device(some: Sample) -> None:
    """Whoever opens a pipe waits for ever."""
    if some.number % 2:
        os.mkfifo(some.path)
    else:
        some.path.symlink_to("/dev/zero")


@damage("images", INDEXED, end=".png")
def folder_named_as_a_picture(some: Sample) -> None:
    some.shown = some.picture
    some.path.mkdir()
    (some.path / "1.png").write_bytes(some.file("PNG"))


@damage("images", INDEXED, end=" .png")
def odd_names(some: Sample) -> bytes:
    some.shown = some.picture
    odd = some.one_of(
        "\n", '"', ",", ";", "'", "\\", " ", "\t", "\r", "é", "超音波", "%s{organ}", "$HOME", "*?[a]", "💉"
    )
    some.path = some.path.with_name(some.path.name.replace(" ", f" a{odd}b"))
    return some.file("PNG")


@damage("images", "rejected: its path is not in UTF-8; rename the file", end=".png")
def names_that_are_not_utf8(some: Sample) -> bytes:
    name = os.fsencode(some.path.stem) + b" L\xe4sion\xff.png"
    some.path = some.path.with_name(os.fsdecode(name))
    return some.file("PNG")
