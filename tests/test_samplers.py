"""Samplers: what they say of frequencies is what an epoch has, exactly, and the same for every rank and resumption."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from processes import run

from ussl.cli import main
from ussl.data.loader import Loader
from ussl.data.sampling import apportioned, coded, groups, rotated
from ussl.data.schedule import Schedule
from ussl.parts import Sampler
from ussl.testing import check_sampler, tiny_rows
from ussl_plugins.samplers import fraction, natural, organ_balanced, organ_homogeneous, organ_subset, patient_balanced
from ussl_plugins.samplers.fraction import Fraction
from ussl_plugins.samplers.natural import Natural
from ussl_plugins.samplers.organ_balanced import OrganBalanced
from ussl_plugins.samplers.organ_homogeneous import OrganHomogeneous
from ussl_plugins.samplers.organ_subset import OrganSubset
from ussl_plugins.samplers.patient_balanced import PatientBalanced

EACH = [
    (Natural, {}),
    (OrganBalanced, {"alpha": 0.3, "cap": 20}),
    (OrganSubset, {"organs": {"thyroid": 9, "liver": None}}),
    (OrganHomogeneous, {}),
    (PatientBalanced, {"per_patient": 2}),
    (Fraction, {"share": 0.6}),
]


@pytest.fixture(autouse=True)
def notes(monkeypatch):
    """Notes come anew in every test."""
    monkeypatch.setattr("ussl.notice._said", set())


def table(**organs):
    """Rows of so many images an organ, five of each patient."""
    return [
        {"path": f"{organ}{i}.png", "source": "s", "organ": organ, "patient": f"{organ}{i // 5}"}
        for organ, count in organs.items()
        for i in range(count)
    ]


def count(rows, order, column="organ"):
    return Counter(rows[i][column] for i in order)


def epochs(sampler, rows, amount, batch_size=1):
    sampler.batch_size = batch_size
    return [sampler.order(rows, 0, epoch) for epoch in range(amount)]


@pytest.mark.parametrize(("sampler", "options"), EACH)
def test_every_sampler_keeps_the_contract(sampler, options):
    check_sampler(sampler, **options)


def test_every_sampler_is_offered_under_its_name():
    modules = (natural, organ_balanced, organ_subset, organ_homogeneous, patient_balanced, fraction)
    offered = {}
    for module in modules:
        offered |= module.ussl_samplers()
    assert offered == {module.__name__.rpartition(".")[2]: cls for module, (cls, _) in zip(modules, EACH, strict=True)}


class Broken(Sampler):
    """Does wrong what it is told to."""

    def __init__(self, *, how: str = "rank"):
        self.how, self.calls = how, 0

    def order(self, rows, seed, epoch):
        self.calls += 1
        if self.how == "changes":
            rows.append({})
        if self.how == "rank":
            seed += int(os.environ.get("RANK", 0))
        seed = {"state": self.calls, "seed": 0, "global": np.random.randint(1000)}.get(self.how, seed)
        order = np.random.default_rng([seed, 0 if self.how == "epoch" else epoch]).permutation(40)
        return {"list": list(order), "range": order + 10, "short": order[:3], "uneven": order[epoch:]}.get(
            self.how, order
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rank", "another process"),
        ("state", "another process"),
        ("global", "another process"),
        ("seed", "another seed gives the same"),
        ("epoch", "all epochs have the same order"),
        ("changes", "changed the rows"),
        ("list", r"gave list in epoch 0; it must be \(n,\) whole numbers"),
        ("range", "row numbers outside 0 to 47"),
        ("short", "an epoch of 3 entries has no batch of 4"),
        ("uneven", "epochs have 37 or 38 or 39 or 40 entries"),
    ],
)
def test_the_check_tells_what_is_wrong_with_a_sampler(how, message):
    with pytest.raises(AssertionError, match=message):
        check_sampler(Broken, how=how)


def test_the_check_leaves_environment_and_random_state_as_they_were(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    before = np.random.get_state()[1].tolist()
    check_sampler(Natural)
    assert np.random.get_state()[1].tolist() == before
    assert os.environ["RANK"] == "7"
    assert "LOCAL_RANK" not in os.environ


def test_largest_remainder_is_exact():
    # 10 seats for 53, 24, 23 votes: quotas 5.3, 2.4, 2.3
    assert apportioned(np.array([53.0, 24, 23]), 10).tolist() == [5, 3, 2]
    assert apportioned(np.ones(3), 10).tolist() == [4, 3, 3]
    assert apportioned(np.array([1e6, 3.0, 7.0]), 1_000_010).tolist() == [1_000_000, 3, 7]
    assert apportioned(np.array([1.0, 2.0]), 0).tolist() == [0, 0]


def test_values_are_coded_in_their_order_and_what_is_missing_is_minus_one():
    rows = [{"organ": x} for x in ("liver", None, 3, "liver", "", float("nan"), "3")] + [{}]
    codes, names = coded(rows, "organ")
    assert codes.tolist() == [0, -1, 1, 0, -1, -1, 1, -1]
    assert names == ["liver", "3"]


def test_equal_patient_names_in_two_sources_are_two_patients_and_missing_ones_stand_alone(capsys):
    cells = [("a", "1"), ("b", "1"), ("a", "1"), ("a", None), ("a", None), (None, "1")]
    found = groups([{"source": source, "patient": patient} for source, patient in cells], "patient").tolist()
    assert found[0] == found[2]
    assert len(set(found)) == 5
    assert "2 of 6 images have no patient: each counts as a patient of its own" in capsys.readouterr().err


# organ_balanced


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0, {"thyroid": 30, "breast": 30, "liver": 30}),
        (0.5, {"thyroid": 45, "breast": 26, "liver": 19}),  # roots 7.746, 4.472, 3.162: 45.33, 26.17, 18.50
        (1, {"thyroid": 60, "breast": 20, "liver": 10}),
    ],
)
def test_every_epoch_has_the_stated_shares(alpha, expected):
    rows, sampler = table(thyroid=60, breast=20, liver=10), OrganBalanced(alpha=alpha)
    assert sampler.shares(rows) == expected
    for order in epochs(sampler, rows, 5):
        assert count(rows, order) == expected


def test_balanced_means_equal_unless_told_otherwise():
    rows = table(thyroid=60, breast=20, liver=10)
    assert count(rows, OrganBalanced().order(rows, 0, 0)) == {"thyroid": 30, "breast": 30, "liver": 30}


def test_shares_are_those_of_the_formula_for_the_organs_of_the_paper():
    counts = {"thyroid": 44398, "breast": 8466, "abdomen": 12304, "kidney": 11121, "vein": 172, "ovary": 359}
    rows = [{"organ": organ, "source": "s"} for organ, amount in counts.items() for _ in range(amount)]
    shares = OrganBalanced(alpha=0.3).shares(rows)
    total = sum(amount**0.3 for amount in counts.values())
    assert sum(shares.values()) == len(rows)
    for organ, amount in counts.items():
        assert abs(shares[organ] - amount**0.3 / total * len(rows)) < 1


def test_rare_organs_repeat_evenly_and_frequent_ones_are_seen_once_an_epoch_at_most():
    rows = table(thyroid=60, breast=20, liver=10)
    for order in epochs(OrganBalanced(alpha=0), rows, 4):
        times = Counter(order.tolist())
        for i, row in enumerate(rows):
            assert times[i] in {"thyroid": (0, 1), "breast": (1, 2), "liver": (3,)}[row["organ"]]


@pytest.mark.parametrize("amount", [60, 61, 45])
def test_an_image_left_out_of_an_epoch_comes_before_any_comes_again(amount):
    rows = table(thyroid=amount, liver=3)
    seen = np.zeros(len(rows), int)
    for order in epochs(OrganBalanced(alpha=0, images=40), rows, 30):
        np.add.at(seen, order, 1)
        thyroid = seen[:amount]
        assert thyroid.max() - thyroid.min() <= 1


def test_what_is_left_out_together_differs_from_pass_to_pass():
    rows = table(thyroid=40, liver=40)
    halves = [frozenset(order[order < 40].tolist()) for order in epochs(OrganBalanced(alpha=0, images=40), rows, 8)]
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(40))
    assert len(set(halves)) == 8


def test_a_repeated_image_has_another_turn():
    rows = table(thyroid=60, liver=2)
    _, index, turn = Schedule(rows, OrganBalanced(), 0, 62).rows_of(0)
    for i in (60, 61):
        turns = sorted(turn[index == i].tolist())
        assert turns == list(range(len(turns)))
        assert len(turns) in (15, 16)


def two_sources():
    """80 thyroid images of a and 20 of b, 10 liver images of b."""
    cells = [("thyroid", "a")] * 80 + [("thyroid", "b")] * 20 + [("liver", "b")] * 10
    return [{"organ": organ, "source": source} for organ, source in cells]


def test_a_source_gives_at_most_its_cap_an_epoch():
    rows = two_sources()
    for order in epochs(OrganBalanced(alpha=1, cap={"a": 20}), rows, 6):
        assert count(rows, order, "source") == {"a": 20, "b": 30}
        assert count(rows, order) == {"thyroid": 40, "liver": 10}
    capped = OrganBalanced(alpha=0, cap={"a": 10})
    for order in epochs(
        capped, rows, 6
    ):  # thyroid counts 10 + 20, liver 10: an epoch of 40, a third of half of it a's
        assert count(rows, order, "source")["a"] <= 10
        assert count(rows, order) == capped.shares(rows) == {"thyroid": 20, "liver": 20}


def test_a_capped_source_takes_turns_over_epochs():
    rows = two_sources()
    seen = np.zeros(len(rows), int)
    for order in epochs(OrganBalanced(alpha=1, cap=20), rows, 4):
        np.add.at(seen, order, 1)
    assert seen[:80].tolist() == [1] * 80


@pytest.mark.parametrize("seed", range(20))
def test_caps_and_shares_hold_whatever_the_counts(seed):
    draw = np.random.default_rng(seed)
    rows = [{"organ": f"o{o}", "source": f"s{s}"} for o, s in draw.integers(0, (5, 3), (200, 2))]
    cap, alpha = int(draw.integers(10, 100)), float(draw.uniform())
    sampler = OrganBalanced(alpha=alpha, cap=cap)
    order = sampler.order(rows, 0, 3)
    assert max(count(rows, order, "source").values()) <= cap
    assert count(rows, order) == sampler.shares(rows)
    weights = defaultdict(float)  # an organ's images, those of a capped source counted down to its cap
    for (organ, source), amount in Counter((row["organ"], row["source"]) for row in rows).items():
        of_source = sum(row["source"] == source for row in rows)
        weights[organ] += amount * min(1, cap / of_source)
    total = sum(weight**alpha for weight in weights.values())
    for organ, weight in weights.items():
        assert abs(sampler.shares(rows)[organ] - weight**alpha / total * len(order)) < 1


def test_a_shorter_epoch_is_said_and_a_longer_one_than_caps_allow_refused(capsys):
    rows = two_sources()
    OrganBalanced(alpha=0, cap={"a": 10}).order(rows, 0, 0)
    assert capsys.readouterr().err == ""
    # thyroid counts 80 / 9 + 20, heart 10 / 9; of an epoch 1 / 3 * 8.89 / 28.89 + 1 / 3 = .436 are a's: 10 / .436
    rows += [{"organ": "heart", "source": "a"}] * 10
    assert OrganBalanced(alpha=0, cap={"a": 10}).shares(rows) == {"thyroid": 8, "liver": 7, "heart": 7}
    assert "an epoch is 22 images, not 40: with more, a source would exceed its cap" in capsys.readouterr().err
    rows = two_sources()
    with pytest.raises(ValueError, match="images is 80, and cap allows 60 an epoch"):
        OrganBalanced(alpha=0, cap={"a": 10}, images=80).order(rows, 0, 0)


def test_an_epoch_may_be_of_any_length():
    rows = table(thyroid=60, breast=20, liver=10)
    for images in (3, 50, 500):
        order = OrganBalanced(alpha=0.5, images=images).order(rows, 0, 1)
        assert len(order) == images
    with pytest.raises(ValueError, match="2 images an epoch leave none for liver"):
        OrganBalanced(alpha=0.5, images=2).order(rows, 0, 1)


def test_images_without_an_organ_are_balanced_as_one_more(capsys):
    rows = [*table(thyroid=60, liver=10), *({"organ": None} for _ in range(20))]
    assert OrganBalanced().shares(rows) == {"thyroid": 30, "liver": 30, "not said": 30}
    assert "20 of 90 images have no organ: balanced as one more" in capsys.readouterr().err


def test_another_column_can_be_balanced():
    rows = [{"label": "benign"}] * 9 + [{"label": "malignant"}]
    assert OrganBalanced(column="label").shares(rows) == {"benign": 5, "malignant": 5}


# organ_subset


def test_a_subset_has_the_organs_and_counts_asked_for_in_every_epoch():
    rows = table(thyroid=60, breast=20, liver=10)
    asked = {"thyroid": 33, "liver": 7}
    orders = epochs(OrganSubset(organs=asked), rows, 3)
    for order in orders:
        assert count(rows, order) == asked
        assert len(set(order.tolist())) == 40
        assert set(order.tolist()) == set(orders[0].tolist())
    other_seed = OrganSubset(organs=asked).order(rows, 5, 0)
    assert set(other_seed.tolist()) == set(orders[0].tolist())
    assert count(rows, OrganSubset(organs=["liver", "breast"]).order(rows, 0, 0)) == {"breast": 20, "liver": 10}


def test_a_count_takes_whole_patients_first():
    rows = table(thyroid=60)
    order = OrganSubset(organs={"thyroid": 33}).order(rows, 0, 0)
    assert sorted(count(rows, order, "patient").values()) == [3, 5, 5, 5, 5, 5, 5]


def test_larger_counts_hold_smaller_ones_and_another_draw_has_other_patients():
    rows = table(thyroid=60, breast=40)
    chosen = [
        set(OrganSubset(organs={"thyroid": n, "breast": 8}).order(rows, 0, 0).tolist()) for n in (1, 14, 15, 59, 60)
    ]
    assert all(a < b for a, b in pairwise(chosen))
    other = set(OrganSubset(organs={"thyroid": 14, "breast": 8}, draw=1).order(rows, 0, 0).tolist())
    assert other != chosen[1]


def test_a_null_count_is_all_of_an_organ():
    rows = table(thyroid=60, liver=10)
    sampler = OrganSubset(organs={"thyroid": 20, "liver": None})
    assert count(rows, sampler.order(rows, 0, 0)) == {"thyroid": 20, "liver": 10}


def test_images_without_patient_are_drawn_one_by_one(capsys):
    rows = [{"organ": "liver"} for _ in range(10)]
    assert len(OrganSubset(organs={"liver": 4}).order(rows, 0, 0)) == 4
    assert "10 of 10 images have no patient" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("organs", "message"),
    [
        ({"thyroid": 61}, "organs: 61 images of thyroid are asked for, and there are 60"),
        (["Thyroid"], 'no image has organ "Thyroid"; did you mean "thyroid"?'),
        (["heart"], 'no image has organ "heart"; there are: liver, thyroid'),
    ],
)
def test_organs_and_counts_that_are_not_there_are_refused(organs, message):
    with pytest.raises(ValueError) as caught:
        OrganSubset(organs=organs).order(table(thyroid=60, liver=10), 0, 0)
    assert message in str(caught.value)


# organ_homogeneous


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_has_one_organ_and_no_image_twice(seed):
    draw = np.random.default_rng(seed)
    batch = int(draw.integers(2, 12))
    rows = table(**{f"o{i}": int(n) for i, n in enumerate(draw.integers(batch, 6 * batch, draw.integers(1, 7)))})
    orders = epochs(OrganHomogeneous(), rows, 6, batch)
    for order in orders:
        assert len(order) == len(rows) // batch * batch
        for at in range(0, len(order), batch):
            images = order[at : at + batch].tolist()
            assert len({rows[i]["organ"] for i in images}) == 1
            assert len(set(images)) == batch


def test_organs_come_in_proportion_and_their_images_equally_often():
    rows, batch, amount = table(thyroid=57, breast=23, liver=9, vein=8), 8, 200
    seen = np.zeros(len(rows), int)
    for order in epochs(OrganHomogeneous(), rows, amount, batch):
        np.add.at(seen, order, 1)
    organs = np.array([row["organ"] for row in rows])
    for organ in ("thyroid", "breast", "liver", "vein"):
        own = seen[organs == organ]
        assert own.max() - own.min() <= 1
        assert own.mean() == pytest.approx(amount * 96 / 97, rel=0.02)  # 12 whole batches of 97 images


def test_the_organs_of_batches_alternate_at_random():
    rows = table(thyroid=40, liver=40)
    lines = [[rows[i]["organ"] for i in order[::4]] for order in epochs(OrganHomogeneous(), rows, 3, 4)]
    assert len({tuple(line) for line in lines}) == 3
    for line in lines:
        assert line not in (sorted(line), sorted(line)[::-1])


def test_companions_in_a_batch_change_from_epoch_to_epoch():
    rows = table(thyroid=40)
    batches = [frozenset(order[:4].tolist()) for order in epochs(OrganHomogeneous(), rows, 6, 4)]
    assert len(set(batches)) == 6


def test_organs_smaller_than_a_batch_are_refused_merged_or_left_out(capsys):
    rows = table(thyroid=40, liver=7, vein=5)
    with pytest.raises(ValueError) as caught:
        epochs(OrganHomogeneous(), rows, 1, 8)
    assert str(caught.value) == (
        "fewer images than a batch of 8: liver 7, vein 5. Write --train.batch_size 5 or less, "
        "--sampler.small merge (they share batches) or --sampler.small leave_out"
    )
    for order in epochs(OrganHomogeneous(small="merge"), rows, 4, 8):
        organs = [{rows[i]["organ"] for i in batch} for batch in order.reshape(-1, 8)]
        assert sorted(map(len, organs))[-1] == 2
        assert all(found == {"thyroid"} or found == {"liver", "vein"} for found in organs)
    assert "liver 7, vein 5; they share batches" in capsys.readouterr().err
    for order in epochs(OrganHomogeneous(small="leave_out"), rows, 2, 8):
        assert count(rows, order) == {"thyroid": 40}
    assert "liver 7, vein 5; left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"12 together\. Write --train.batch_size 12"):
        epochs(OrganHomogeneous(small="merge"), rows, 1, 16)
    with pytest.raises(ValueError, match=r"none is left\. Write --train.batch_size 40 or less"):
        epochs(OrganHomogeneous(small="leave_out"), rows, 1, 64)


# patient_balanced


@pytest.mark.parametrize("each", [1, 2, 3])
def test_every_patient_comes_equally_often_and_their_images_take_turns(each):
    sizes = {"a": 7, "b": 1, "c": 4, "d": 2}
    rows = [{"source": "s", "patient": name} for name, size in sizes.items() for _ in range(size)]
    seen = np.zeros(len(rows), int)
    for order in epochs(PatientBalanced(per_patient=each), rows, 28):
        assert count(rows, order, "patient") == dict.fromkeys(sizes, each)
        np.add.at(seen, order, 1)
        for name in sizes:
            own = seen[[row["patient"] == name for row in rows]]
            assert own.max() - own.min() <= 1
    assert seen[:7].tolist() == [28 * each // 7] * 7


def test_an_image_without_patient_is_a_patient_of_its_own(capsys):
    rows = [{"patient": x} for x in ("a", "a", "a", None, None)]
    order = PatientBalanced().order(rows, 0, 0)
    assert sorted(rows[i]["patient"] or str(i) for i in order) == ["3", "4", "a"]
    assert "2 of 5 images have no patient" in capsys.readouterr().err


# fraction


@pytest.fixture
def uneven():
    """Patients of 1 to 9 images, of three organs, some patients of two."""
    draw = np.random.default_rng(0)
    rows = []
    for patient in range(300):
        organ = draw.choice(["thyroid", "breast", "liver"], p=[0.7, 0.2, 0.1])
        for i in range(int(draw.integers(1, 10))):
            rows.append({"source": "s", "patient": str(patient), "organ": str(organ) if i < 8 else "breast"})
    order = draw.permutation(len(rows))
    return [rows[i] for i in order]


def test_smaller_shares_lie_within_larger_ones_and_all_is_all(uneven):
    chosen = [set(Fraction(share=share).order(uneven, 0, 0).tolist()) for share in (0.01, 0.1, 0.2, 0.5, 0.51, 1)]
    assert all(a < b for a, b in pairwise(chosen))
    assert len(chosen[-1]) == len(uneven)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_a_share_has_whole_patients_and_as_many_images_of_every_organ(uneven, share, capsys):
    order = Fraction(share=share).order(uneven, 3, 2)
    taken = {uneven[i]["patient"] for i in order}
    assert len(order) == sum(row["patient"] in taken for row in uneven)
    assert abs(len(order) - share * len(uneven)) <= 4.5  # half of the largest patient
    for organ, amount in count(uneven, range(len(uneven))).items():
        assert abs(count(uneven, order)[organ] - share * amount) <= 12
    said = f"share {share:g} is {len(order):,} of {len(uneven):,} images, {len(taken)} of 300 by patient"
    assert said in capsys.readouterr().err


def test_a_share_is_the_same_in_every_epoch_and_for_every_seed_but_not_for_every_draw(uneven):
    sampler = Fraction(share=0.2)
    sets = {frozenset(sampler.order(uneven, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(sets) == 1
    assert frozenset(Fraction(share=0.2, draw=1).order(uneven, 0, 0).tolist()) not in sets


def test_the_share_nearest_to_the_asked_is_taken():
    rows = [{"patient": "abc"[i // 4], "organ": "liver"} for i in range(12)]
    sizes = [len(Fraction(share=share).order(rows, 0, 0)) for share in (0.01, 0.34, 0.49, 0.52, 0.84, 1)]
    assert sizes == [4, 4, 4, 8, 12, 12]
    assert len(Fraction(share=0.5, by=None).order(rows, 0, 0)) == 6


def test_organs_that_a_share_lacks_are_told(capsys):
    rows = table(thyroid=60, liver=1)
    Fraction(share=0.1).order(rows, 0, 0)
    assert "this share has no image of liver" in capsys.readouterr().err


def test_images_without_organ_are_a_stratum_of_their_own():
    rows = [{"patient": str(i), "organ": "liver" if i % 2 else None} for i in range(40)]
    order = Fraction(share=0.5).order(rows, 0, 0)
    assert count(rows, order) == {"liver": 10, None: 10}


# columns, options


@pytest.mark.parametrize(
    ("sampler", "column", "instead"),
    [
        (OrganBalanced(), "organ", ""),
        (OrganBalanced(cap=3), "source", "; without a cap it needs no source"),
        (OrganSubset(organs=["liver"]), "organ", ""),
        (OrganHomogeneous(), "organ", ""),
        (PatientBalanced(), "patient", ""),
        (Fraction(share=0.5), "patient", "; write by: null to draw images one by one"),
        (Fraction(share=0.5), "organ", "; write stratify: null to keep no proportions"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(sampler, column, instead):
    rows = [{"path": "a.png", **{name: "x" for name in ("source", "organ", "patient") if name != column}}] * 3
    there = ", ".join(rows[0])
    for empty in ({}, {column: None}):
        with pytest.raises(ValueError) as caught:
            sampler.order([{**row, **empty} for row in rows], 0, 0)
        assert str(caught.value) == (
            f"the sampler needs the column `{column}`, and no row has it; the columns there are: {there}{instead}"
        )


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (OrganBalanced, {"alpha": 1.5}, "alpha is 1.5: write 0"),
        (OrganBalanced, {"images": 0}, "images is 0"),
        (OrganBalanced, {"cap": 0}, "cap is 0"),
        (OrganBalanced, {"cap": {"a": 0}}, "write at least 1 image a source"),
        (OrganSubset, {"organs": []}, "name at least one"),
        (OrganSubset, {"organs": ["liver", "liver"]}, "each once"),
        (OrganSubset, {"organs": {"liver": 0}}, "at least 1 image of each"),
        (PatientBalanced, {"per_patient": 0}, "per_patient is 0"),
        (Fraction, {"share": 0.0}, "share is 0.0"),
        (Fraction, {"share": 10}, "share is 10"),
    ],
)
def test_options_without_sense_are_refused(sampler, options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


def test_a_cap_of_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r'cap: no image is of source "privat"; did you mean "private"\?'):
        OrganBalanced(cap={"privat": 5}).order([{"organ": "liver", "source": "private"}], 0, 0)


def test_a_group_takes_turns_without_gaps_whatever_its_size_and_count():
    members = np.repeat([0, 1, 2], [6, 1, 4])
    seen = np.zeros(11, int)
    for epoch in range(12):
        chosen = rotated(members, np.array([4, 2, 1]), 5, epoch)
        assert members[chosen].tolist() == [0] * 4 + [1] * 2 + [2]
        np.add.at(seen, chosen, 1)
    assert seen.tolist() == [8] * 6 + [24] + [3] * 4


# training


class Pixels:
    """Reads a picture that is its row's number."""

    def read(self, row):
        return np.full((4, 4), int(row["path"].removesuffix(".png")), np.uint8)


def batches(rank, world):
    """What every sampler gives a rank in a few steps: the rows of each."""
    found = {}
    for cls, options in EACH:
        sizes = {"seed": 0, "batch_size": 4, "micro_batch": 2, "rank": rank, "world": world}
        loader = Loader(tiny_rows(), {"images": Pixels()}, cls(**options), **sizes)
        steps = defaultdict(list)
        for step, batch in loader.batches(1, 2 * loader.steps_per_epoch):
            assert batch.pixels[:, 0, 0, 0].tolist() == batch.index.tolist()
            steps[step] += list(zip(batch.index.tolist(), batch.turn.tolist(), strict=True))
        found[cls.__name__] = dict(steps)
    return found


def test_two_processes_see_together_what_one_sees():
    alone, ranks = batches(0, 1), run(batches, 2)
    for name, steps in alone.items():
        assert len(steps) > 1
        assert steps == {step: ranks[0][name][step] + ranks[1][name][step] for step in steps}


RECIPE = """
source: {name: phantom, images: 24, patients: 12, size: 32, organs: [liver, breast, thyroid], cache: false}
augmentation: {name: crop, size: 32}
encoder: {name: vit, width: 16, depth: 1, heads: 1, patch: 16, image_size: 32}
masking: {name: random, ratio: 0.5}
target: pixels
objective: {name: masked_prediction, width: 16, depth: 1, heads: 1}
optimizer: {name: adamw}
loader: {workers: 0}
train: {steps: 2, batch_size: 4, micro_batch: 4, threads: 1}
"""
STOPPING = '''
"""An objective that is told to stop."""
import os, signal
from ussl.hookspecs import hookimpl
from ussl_plugins.objectives.masked_prediction import MaskedPrediction


class Stopping(MaskedPrediction):
    """Masked prediction that is sent SIGTERM in step USSL_AT."""

    def before_step(self, at):
        super().before_step(at)
        if at.step == int(os.environ["USSL_AT"]):
            os.kill(os.getpid(), signal.SIGTERM)


@hookimpl
def ussl_objectives():
    return {"stopping": Stopping}
'''
ON_PHANTOMS = [
    (Natural, ""),
    (OrganBalanced, "alpha: 0.5, cap: 20"),
    (OrganSubset, "organs: {liver: 5, breast: null}"),
    (OrganHomogeneous, "small: merge"),
    (PatientBalanced, "per_patient: 2"),
    (Fraction, "share: 0.5"),
]


def fit(write, tmp_path, sampler, options, out, *words):
    path = f"{sampler.__module__}.{sampler.__name__}"
    write("recipe.yaml", RECIPE + f"sampler: {{class_path: {path}, init_args: {{{options}}}}}\n")
    return main(["fit", "--recipe", str(tmp_path / "recipe.yaml"), "--trust", "--out", str(tmp_path / out), *words])


@pytest.mark.parametrize(("sampler", "options"), ON_PHANTOMS)
def test_every_sampler_trains(write, tmp_path, sampler, options):
    assert fit(write, tmp_path, sampler, options, "run") == 0
    assert (tmp_path / "run/encoder/model.safetensors").is_file()


def test_a_run_stopped_within_an_epoch_resumes_to_the_same_weights(write, tmp_path, monkeypatch):
    write("stopping.py", STOPPING)
    words = ["--plugin", str(tmp_path / "stopping.py"), "--objective.name", "stopping", "--train.steps", "5"]
    sampler, options = OrganBalanced, "images: 12"  # an epoch is three steps

    def train(out, at, *more):
        monkeypatch.setenv("USSL_AT", at)
        return fit(write, tmp_path, sampler, options, out, *words, *more)

    assert train("whole", "-1") == 0
    assert train("parts", "3") == 130
    assert train("parts", "-1", "--resume") == 0
    weights = [(tmp_path / out / "encoder/model.safetensors").read_bytes() for out in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_options_of_samplers_come_from_the_command_line_as_from_a_recipe(write, tmp_path, capsys):
    words = ["--sampler.init_args.organs", "{kidney: 3}"]
    assert fit(write, tmp_path, OrganSubset, "organs: [liver]", "run", *words) == 2
    assert 'no image has organ "kidney"; there are: breast, liver, thyroid' in capsys.readouterr().err


def test_a_fraction_keeps_its_patients_when_rows_come_go_or_move():
    rows = [{"path": f"{i}.png", "source": "s", "patient": f"p{i // 2}", "organ": "liver"} for i in range(400)]

    def patients(some):
        return {some[i]["patient"] for i in Fraction(share=0.1).chosen(some)}

    whole = patients(rows)
    assert patients(rows[::-1]) == whole
    fewer = [row for row in rows if row["patient"] != min(whole)]
    assert len(patients(fewer) & whole) >= len(whole) - 2
