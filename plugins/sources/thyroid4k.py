"""Thyroid4K: pictures of thyroid nodules."""

from __future__ import annotations

from ussl.data.class_folders import ClassFolders
from ussl.hookspecs import hookimpl
from ussl.parts import Source


class Thyroid4K(ClassFolders):
    """Thyroid4K: pictures of thyroid nodules; a tree of class folders, since its own layout is not documented.

    The class folders' names are kept, in small letters. It is not Zenodo 8231412 (BUS-BRA, breast) nor 7272660
    (liver), which lists of data sets give as its address. No patient id is known: give a table if there is one.
    """

    name = "thyroid4k"
    organ = "thyroid"
    expected = "folders named for the classes (with or without train and test), with pictures in them"


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer Thyroid4K."""
    return {"thyroid4k": Thyroid4K}
