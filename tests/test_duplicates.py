"""Near-duplicates by their hashes: the same as comparing all pairs, without doing that."""

import numpy as np
import pytest

from ussl.data.duplicates import DISTANCE, near, nearest
from ussl.data.fingerprint import BITS


def text(bits):
    """Hashes, of (n, BITS) bools."""
    return [row.tobytes().hex() for row in np.packbits(bits, axis=1)]


def drawn(count, seed=0):
    return np.random.default_rng(seed).random((count, BITS)) < 0.5


def moved(bits, distance, seed=0):
    """The same hashes with `distance` bits turned over in each."""
    rng = np.random.default_rng(seed)
    bits = bits.copy()
    for row in bits:
        row[rng.choice(BITS, distance, replace=False)] ^= True
    return bits


def apart(bits):
    """(n, n) differing bits of all pairs."""
    return np.array([[int((one != other).sum()) for other in bits] for one in bits])


def joined(pairs):
    """Cluster numbers in order of appearance, by painting from picture to picture."""
    numbers = [-1] * len(pairs)
    for start in range(len(pairs)):
        reached = [start] if numbers[start] < 0 else []
        number = max(numbers) + 1
        while reached:
            i = reached.pop()
            numbers[i] = number
            reached += [j for j in range(len(pairs)) if pairs[i][j] and numbers[j] < 0]
    return numbers


def families(seed=0):
    """60 hashes: 12 looks, and around each some at all distances up to 70, shuffled."""
    rng = np.random.default_rng(seed)
    looks = drawn(12, seed)
    more = [moved(looks[[rng.integers(12)]], int(rng.integers(1, 70)), i) for i in range(48)]
    return rng.permutation(np.concatenate([looks, *more]))


@pytest.mark.parametrize("distance", [0, 20, DISTANCE])
def test_clusters_are_those_of_all_pairs(distance):
    for seed in range(3):
        bits = families(seed)
        assert near(text(bits), distance).tolist() == joined(apart(bits) <= distance)


def test_the_default_distance_is_the_last_that_joins():
    one = drawn(1)
    for distance, clusters in ((DISTANCE, 1), (DISTANCE + 1, 2)):
        assert near(text(np.concatenate([one, moved(one, distance)]))).max() + 1 == clusters


def test_copies_are_found_among_many_without_joining_others():
    bits = drawn(20_000)
    found = near(text(np.concatenate([bits, moved(bits[:1000], 30)])))
    assert (found[:20_000] == np.arange(20_000)).all()
    assert (found[20_000:] == np.arange(1000)).mean() > 0.999


def test_a_loop_is_one_cluster_however_many_frames_it_has():
    frames = np.repeat(drawn(1), 3000, axis=0) ^ (np.random.default_rng(1).random((3000, BITS)) < 0.05)
    found = near(text(np.concatenate([drawn(500, seed=2), frames])))
    assert len(set(found[500:].tolist())) == 1
    assert len(set(found.tolist())) == 501


def test_equal_hashes_are_one_however_many_there_are():
    assert near(["0" * 64] * 100_000).tolist() == [0] * 100_000


def test_the_same_pictures_in_another_order_have_the_same_clusters():
    bits = families()
    order = np.random.default_rng(1).permutation(len(bits))
    one, other = near(text(bits)), near(text(bits[order]))
    for i in range(len(bits)):
        assert ((one[order] == one[order[i]]) == (other == other[i])).all()


def test_numbers_count_from_0_in_order_of_appearance():
    a, b = drawn(2)
    assert near(text(np.stack([b, a, b, a]))).tolist() == [0, 1, 0, 1]


def test_pictures_without_hash_are_each_their_own():
    a, b = text(drawn(2))
    assert near([None, a, None, a, b]).tolist() == [0, 1, 2, 1, 3]
    assert near([None, None]).tolist() == [0, 1]
    assert near([]).tolist() == []


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, "0" * 63, "0" * 62 + "é0", "0" * 62 + "  "])
def test_what_is_no_hash_is_refused_in_a_line(wrong):
    with pytest.raises(ValueError, match="not 64 hexadecimal digits") as error:
        near(["0" * 64, wrong])
    assert "\n" not in str(error.value)


def test_the_nearest_of_another_class_is_that_of_all_pairs():
    bits = families()
    classes = np.random.default_rng(3).integers(0, 3, len(bits))
    there, distance = nearest(text(bits), classes, lambda own, other: other < own)
    every = apart(bits)
    for i in range(len(bits)):
        others = [int(every[i, j]) for j in range(len(bits)) if classes[j] < classes[i] and every[i, j] <= DISTANCE]
        assert distance[i] == (min(others) if others else -1)
        assert (there[i] >= 0) == bool(others)
        if others:
            assert classes[there[i]] < classes[i]
            assert every[i, there[i]] == distance[i]


def test_every_frame_of_a_loop_finds_the_test_picture_that_it_is_like():
    rng = np.random.default_rng(0)
    look = drawn(1)
    frames = np.repeat(look, 2000, axis=0) ^ (rng.random((2000, BITS)) < 0.05)
    hashes = text(np.concatenate([drawn(1000, seed=1), frames, look]))
    classes = np.append(np.ones(3000, dtype=np.int64), 0)
    there, _ = nearest(hashes, classes, lambda own, other: own > other)
    assert (there[:1000] == -1).all()
    assert (there[1000:3000] == 3000).all()
    assert there[3000] == -1


def test_the_class_that_counts_is_asked_with_both_classes():
    hashes = text(np.repeat(drawn(1), 3, axis=0))
    there, bits = nearest(hashes, np.array([0, 1, 5]), lambda own, other: (own == 5) & (other == 1))
    assert there.tolist() == [-1, -1, 1]
    assert bits.tolist() == [-1, -1, 0]


def test_pictures_without_hash_have_no_nearest():
    there, bits = nearest([None, "0" * 64, None], np.array([1, 0, 0]), lambda own, other: own != other)
    assert there.tolist() == bits.tolist() == [-1, -1, -1]
