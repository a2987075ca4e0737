"""Projection heads by their formulas."""

import torch

from reference.losses import unit
from reference.transformer import gelu


def batch_norm(rows, weight=None, bias=None, eps=1e-5):
    """Ioffe and Szegedy 2015, algorithm 1, with the statistics of the rows (B, D), the variance biased."""
    columns = []
    for d in range(rows.shape[1]):
        mean = rows[:, d].sum() / len(rows)
        variance = (rows[:, d] - mean).square().sum() / len(rows)
        column = (rows[:, d] - mean) / (variance + eps).sqrt()
        column = column if weight is None else column * weight[d]
        columns.append(column if bias is None else column + bias[d])
    return torch.stack(columns, 1)


def mlp(layers, rows):
    """Linear without bias, batch norm, ReLU between; no ReLU after the last.

    layers: (weight, scale, shift) of each, None for a scale or shift that its batch norm lacks.
    """
    for i, (weight, scale, shift) in enumerate(layers):
        rows = batch_norm(torch.stack([weight @ row for row in rows]), scale, shift)
        if i + 1 < len(layers):
            rows = rows.clamp(min=0)
    return rows


def prototypes(layers, directions, lengths, rows):
    """DINO's head: GELU between layers, then the product of the unit vector with prototypes of given lengths.

    layers: (weight, bias) of each; directions: (prototypes, bottleneck), weight norm divides each by its length.
    """
    directions = [unit(v) for v in directions]
    scores = []
    for row in rows:
        for i, (weight, bias) in enumerate(layers):
            row = weight @ row + bias
            row = gelu(row) if i + 1 < len(layers) else row
        short = unit(row)
        scores.append(torch.stack([g * torch.dot(v, short) for v, g in zip(directions, lengths, strict=True)]))
    return torch.stack(scores)
