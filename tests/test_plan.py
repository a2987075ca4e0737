"""The micro-batch, and what is said of the time, before training starts."""

import pytest

from ussl import plan
from ussl.logs import duration


def choose(local, wanted="auto", additive=True, anyway=False, fits=None):
    contrasts = None if additive else "objective simclr contrasts the images"
    return plan.micro_batch(local, wanted, contrasts, anyway, fits)


def test_on_a_cpu_the_micro_batch_divides_the_batch_and_is_at_most_32():
    assert choose(1024) == 32
    assert choose(24) == 24
    assert choose(70) == 14
    assert choose(37) == 1


def test_the_largest_micro_batch_that_fits_is_found_by_doubling():
    tried = []

    def fits(count):
        tried.append(count)
        return count <= 100

    assert choose(1024, fits=fits) == 64
    assert tried == [1, 2, 4, 8, 16, 32, 64, 128]
    assert choose(96, fits=fits) == 96


def test_one_image_that_does_not_fit_is_said():
    with pytest.raises(ValueError, match="one image does not fit"):
        choose(8, fits=lambda count: False)


def test_a_micro_batch_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"does not divide.*1, 2, 4, 8"):
        choose(8, 3)


def test_accumulation_of_a_contrastive_loss_is_refused_with_the_batch_it_would_contrast():
    with pytest.raises(
        ValueError,
        match=r"objective simclr contrasts the images of one pass.* many batches of 64, which is another",
    ):
        choose(1024, 64, additive=False)
    with pytest.raises(ValueError, match="so many batches of 64"):
        choose(1024, additive=False, fits=lambda count: count <= 100)
    assert choose(1024, 64, additive=False, anyway=True) == 64
    assert choose(1024, additive=False) == 1024


def test_a_hopeless_recipe_is_said_to_be_hopeless_with_what_to_try():
    assert "hopeless" not in plan.outlook(1000, 10, "cpu")
    assert "hopeless" not in plan.outlook(400_000_000, 1000, "cuda")
    assert "hopeless" in plan.outlook(400_000, 1.5, "cpu")
    line = plan.outlook(400_000_000, 1.5, "cpu")
    assert "8.5 years" in line
    assert "hopeless on this machine" in line
    assert "a GPU" in line
    assert "--train.steps" in line


def test_durations_read_as_a_person_would_say_them():
    assert [duration(s) for s in (5, 300, 9000, 400_000)] == ["5 s", "5.0 min", "2.5 h", "4.6 days"]


def test_an_epoch_that_the_sampler_shortens_is_said_to_be_one():
    (*_, line) = plan.schedule(8, 1, 8, 0.1, 10, 1, 100, 40)
    assert line == "images    80 seen in 10 steps = 2 epochs of 40, which the sampler takes from 100"
    assert "0.8 times each of 100" in plan.schedule(8, 1, 8, 0.1, 10, 1, 100)[-1]
