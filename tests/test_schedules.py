"""Schedules, against the formulas of their authors written out step by step."""

import math

import numpy as np
import pytest

from ussl.schedules import cosine, linspace_cosine, multistep, refuse_rates, warmup_cosine


def test_half_a_cosine_goes_through_its_ends_and_middle():
    assert cosine(0.04, 0.4, 0.0) == pytest.approx(0.04, rel=1e-12)
    assert cosine(0.04, 0.4, 0.5) == pytest.approx(0.22, rel=1e-12)
    assert cosine(0.04, 0.4, 1.0) == 0.4
    assert cosine(1.0, 0.0, 1 / 3) == pytest.approx(0.75, rel=1e-12)


def test_maes_rate_rises_by_fractional_epochs_and_falls_on_a_cosine():
    epochs, warm, length, peak, lowest = 5, 2, 4, 0.6, 0.1
    expected = []
    for epoch in range(epochs):
        for i in range(length):
            e = i / length + epoch
            fall = lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * (e - warm) / (epochs - warm)))
            expected.append(peak * e / warm if e < warm else fall)
    steps = epochs * length
    found = [warmup_cosine(peak, lowest, step / steps, warm / epochs) for step in range(steps)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[8] == pytest.approx(0.6)
    assert found[0] == 0


@pytest.mark.parametrize(("warmup", "start"), [(0, 0.0), (1, 0.0), (4, 0.0), (4, 0.2)])
def test_dinos_rate_reaches_its_peak_in_the_last_step_of_the_warm_up(warmup, start):
    steps, peak, lowest = 12, 0.5, 0.01
    rest = np.arange(steps - warmup)
    fall = lowest + 0.5 * (peak - lowest) * (1 + np.cos(np.pi * rest / len(rest)))
    expected = np.concatenate([np.linspace(start, peak, warmup), fall])
    found = [linspace_cosine(peak, lowest, step, steps, warmup, start) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert warmup < 2 or found[warmup - 1] == found[warmup] == peak


def test_simmims_rate_rises_from_its_first_and_drops_at_milestones():
    # a training of 16 steps, 2 of warm-up, drops after 8 and 12
    expected = [0.1, 0.3] + [0.5] * 6 + [0.05] * 4 + [0.005] * 4
    found = [multistep(0.5, step / 16, 2 / 16, (8 / 16, 12 / 16), 0.1, 0.1) for step in range(16)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_without_warm_up_the_first_rate_is_the_peak():
    assert warmup_cosine(0.3, 0.0, 0.0, 0.0, 0.1) == pytest.approx(0.3, rel=1e-12)
    assert multistep(0.3, 0.0, 0.0, (0.5,), 0.1, 0.1) == 0.3


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ((0.0, 0.0, 0.1), "base_learning_rate"),
        ((math.inf, 0.0, 0.1), "base_learning_rate"),
        ((0.1, -1.0, 0.1), "min_learning_rate"),
        ((0.1, math.nan, 0.1), "min_learning_rate"),
        ((0.1, 0.0, 1.0), "share of the training"),
        ((0.1, 0.0, math.nan), "share of the training"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(rates, word):
    with pytest.raises(ValueError, match=word):
        refuse_rates(*rates)
