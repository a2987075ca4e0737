"""UF1990: pictures of the uterus, with fibroids and without."""

from __future__ import annotations

from ussl.data.class_folders import ClassFolders
from ussl.hookspecs import hookimpl
from ussl.parts import Source


class UF1990(ClassFolders):
    """UF1990: 1,990 pictures of the uterus, with fibroids and without; a tree of class folders (Mendeley 552zbvzwrk).

    The class folders' names are kept, in small letters. No patient id was published: give a table if there is one.
    Mendeley n2zcmcypgb, "Uterine Fibroid Ultrasound Images", is another set, of boxes.
    """

    name = "uf1990"
    organ = "uterus"
    expected = "folders named for the two classes (with or without train and test), with pictures in them"


@hookimpl
def ussl_sources() -> dict[str, type[Source]]:
    """Offer UF1990."""
    return {"uf1990": UF1990}
