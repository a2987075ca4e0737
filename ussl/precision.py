"""In which precision losses and statistics are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(x: Tensor) -> Tensor:
    """At least fp32: half precision would round a loss; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
