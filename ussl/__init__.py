"""Self-supervised learning on ultrasound images: a small engine, plugins, recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ussl.loaded import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`ussl.load`, imported on first use, so that `import ussl` stays light."""
    if name == "load":
        from ussl.loaded import load

        return load
    raise AttributeError(f"module 'ussl' has no attribute {name!r}")
