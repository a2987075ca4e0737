from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from torch import nn

from ussl.evaluate import classify
from ussl.evaluate.classify import STRENGTHS, assign, fit_knn, fit_linear, knn, linear
from ussl.evaluate.features import RawPixels, features
from ussl.evaluate.metrics import auc, metrics
from ussl.evaluate.pictures import Pictures
from ussl.evaluate.spread import effective_rank, spread, verdict
from ussl.parts import Encoder, Mask, Source, Tokens

CPU = torch.device("cpu")


class Flat(Encoder):
    """Its feature is the image itself; `pools` chooses between a pooled token and two patches."""

    accepts = frozenset()

    def __init__(self, pools=True):
        super().__init__()
        self.pools = pools
        self.inside = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
        self.seen = []

    def grid(self, height, width):
        return 1, 2

    def forward(self, image, mask=None):
        self.seen.append((self.inside[0].training, torch.is_grad_enabled(), tuple(image.shape)))
        torch.rand(1)
        flat = self.inside[0](image).flatten(1)[:, None]
        patches = torch.stack([flat, 3 * flat], 2)
        return Tokens(flat if self.pools else None, patches, None, (1, 2))


class Noise(Source):
    """Three pictures of noise."""

    def __init__(self):
        self.pictures = [noise(40, 56, seed=i) for i in range(3)]
        self.read_count = 0

    def rows(self):
        return iter([{"path": str(i), "number": i} for i in range(3)])

    def read(self, row):
        self.read_count += 1
        return self.pictures[row["number"]]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# features


def test_a_feature_is_that_of_the_whole_picture_antialiased_bicubic():
    pictures = [noise(40, 56), noise(24, 16, seed=1)]
    expected = [np.asarray(Image.fromarray(p).resize((8, 8), Image.Resampling.BICUBIC)) / 255 for p in pictures]
    found = features(Flat(), pictures, CPU, 8)
    assert found.shape == (2, 64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.reshape(expected, (2, 64)), atol=1.5 / 255)


def test_a_picture_of_the_right_size_is_taken_as_it_is():
    picture = noise(6, 6)
    np.testing.assert_allclose(features(Flat(), [picture], CPU, 6)[0], picture.ravel() / 255, atol=1e-7)


def test_an_encoder_that_pools_nothing_is_asked_for_the_mean_of_its_patches():
    pictures = [noise(6, 6), noise(6, 6, seed=1)]
    np.testing.assert_allclose(features(Flat(False), pictures, CPU, 6), 2 * features(Flat(), pictures, CPU, 6))


def test_features_do_not_depend_on_the_batch():
    pictures = (noise(9 + i, 7, seed=i) for i in range(5))
    alone = np.concatenate([features(Flat(), [noise(9 + i, 7, seed=i)], CPU, 6) for i in range(5)])
    np.testing.assert_array_equal(features(Flat(), pictures, CPU, 6, batch_size=2), alone)


def test_grey_among_colour_becomes_three_equal_channels():
    grey, colour = noise(6, 6), noise(6, 6, 3, seed=1)
    found = features(Flat(), [grey, colour], CPU, 6).reshape(2, 3, 6, 6)
    np.testing.assert_allclose(found[0], np.repeat(grey[None] / 255.0, 3, 0), atol=1e-6)
    np.testing.assert_allclose(found[1], colour.transpose(2, 0, 1) / 255.0, atol=1e-6)


def test_taking_features_leaves_modes_and_random_states_as_they_were():
    encoder = Flat().train()
    encoder.inside[1].eval()
    modes, state = [m.training for m in encoder.modules()], torch.get_rng_state()
    features(encoder, [noise(4, 4)], CPU, 4)
    assert [m.training for m in encoder.modules()] == modes == [True, True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.seen == [(False, False, (1, 1, 4, 4))]


def test_modes_come_back_when_a_picture_is_refused():
    encoder = Flat().train()
    with pytest.raises(ValueError, match="uint8"):
        features(encoder, [draws(4, 4)], CPU, 4)
    assert all(m.training for m in encoder.modules())


def test_no_pictures_are_refused():
    with pytest.raises(ValueError, match="no pictures"):
        features(Flat(), [], CPU, 4)


def test_pictures_are_blurred_for_an_encoder_that_was_trained_so():
    pictures = [noise(40, 56), noise(24, 24, seed=1)]
    encoder = Flat()
    encoder.preprocess = {"gaussian_blur": 1.1}
    blurred = features(Flat(), [cv2.GaussianBlur(p, (0, 0), 1.1) for p in pictures], CPU, 24)
    assert np.array_equal(features(encoder, pictures, CPU, 24), blurred)
    assert not np.array_equal(features(Flat(), pictures, CPU, 24), blurred)


def test_each_encoder_is_measured_on_what_its_pictures_undergo():
    source = Noise()
    pictures, blurring = Pictures(source, size=16), Flat()
    blurring.preprocess = {"gaussian_blur": 1.1}
    sharp = features(RawPixels(), source.pictures, CPU, 16)
    blurred = features(RawPixels(), [cv2.GaussianBlur(p, (0, 0), 1.1) for p in source.pictures], CPU, 16)
    for encoder, expected in ((blurring, blurred), (RawPixels(), sharp), (blurring, blurred), (blurring, blurred)):
        found = pictures.features(encoder, CPU)
        assert np.allclose(found, expected, rtol=0, atol=0.51 / 255)  # squares are kept in 8 bits
    assert source.read_count == 9  # anew only when another encoder wants something else
    assert not np.allclose(sharp, blurred, rtol=0, atol=2 / 255)


def test_raw_pixels_are_means_over_a_grid_of_16_by_16():
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = np.zeros((2, 256))
    for b, i, j in product(range(2), range(16), range(16)):
        expected[b, 16 * i + j] = image[b, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean()
    pooled = RawPixels()(image).pooled
    assert pooled.shape == (2, 1, RawPixels.width)
    np.testing.assert_allclose(pooled[:, 0], expected, atol=1e-6)
    assert not list(RawPixels().parameters())


def test_raw_pixels_take_no_mask():
    hidden = torch.zeros(1, 1, 256, dtype=torch.bool)
    with pytest.raises(ValueError, match="no mask"):
        RawPixels()(torch.zeros(1, 1, 16, 16), Mask(hidden, hidden[:, :, None], 256, 0))


# metrics


def test_metrics_of_hand_made_predictions():
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1])
    numbers = metrics(truth, np.eye(4)[predicted])
    assert numbers["accuracy"] == pytest.approx(4 / 6)
    # F1 of 0: 2*2/(3+2); of 1: 2*2/(2+4); of 2: never predicted; of 3: neither predicted nor true
    assert numbers["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0 + 0) / 4)
    assert np.isnan(numbers["auc"])


def test_the_area_of_two_classes_is_the_share_of_pairs_in_order():
    truth, score = np.array([0, 1, 0, 1, 1, 0]), np.array([0.2, 0.8, 0.5, 0.5, 0.9, 0.85])
    pairs = [(p > n) + 0.5 * (p == n) for p in score[truth == 1] for n in score[truth == 0]]
    assert auc(truth, np.stack([1 - score, score], 1))[0] == pytest.approx(np.mean(pairs))


def test_the_area_of_more_classes_is_the_mean_of_one_against_the_rest():
    truth, probabilities = np.arange(30) % 3, np.random.default_rng(0).dirichlet(np.ones(3), 30)
    expected = roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    assert auc(truth, probabilities) == (pytest.approx(expected), None)


def test_an_area_without_a_class_is_not_a_number_and_says_why():
    area, reason = auc(np.array([0, 0, 2]), np.eye(3), ["benign", "malignant", "normal"])
    assert np.isnan(area)
    assert reason == "no AUC: none of the 3 images is malignant"


# folds


def test_no_group_is_on_both_sides_and_classes_are_even():
    groups = np.repeat(np.arange(40), 3)
    codes = (groups % 4 == 0).astype(int)
    fold = assign(codes, groups, 5)
    assert all(len(set(fold[groups == g])) == 1 for g in range(40))
    assert [int(codes[fold == i].sum()) for i in range(5)] == [6] * 5
    np.testing.assert_array_equal(fold, assign(codes, groups, 5))
    assert (fold != assign(codes, groups, 5, seed=1)).any()


def test_groups_that_cannot_be_divided_are_refused():
    codes, groups = np.array([1, 0, 0, 0, 1, 1]), np.array([0, 1, 2, 2, 2, 2])
    with pytest.raises(ValueError, match="cannot be divided into 2 folds"):
        assign(codes, groups, 2)


@pytest.mark.parametrize("probe", [linear, lambda *a: knn(*a, k=5)])
def test_what_identifies_the_patient_alone_is_worth_nothing(probe):
    groups = np.repeat(np.arange(60), 4)
    x, labels = draws(60, 100)[groups], np.random.default_rng(1).integers(0, 2, 60)[groups].astype(str)
    x = x + 0.01 * draws(*x.shape, seed=2)
    assert probe(x, labels, groups)["accuracy"] < 0.65
    assert probe(x, labels, None)["accuracy"] > 0.99  # every image its own: leaks


# linear


def three_classes(count=90, width=6, apart=1.5):
    labels = np.arange(count) % 3
    return apart * np.eye(3, width)[labels] + draws(count, width), np.array(["a", "b", "c"])[labels]


def test_a_linear_probe_reads_what_is_linear_and_nothing_else():
    x, labels = three_classes(apart=8)
    good = linear(x, labels, None)
    assert good["accuracy"] == good["macro_f1"] == 1
    assert good["auc"] == pytest.approx(1)
    assert good["accuracy_sd"] == 0
    assert linear(draws(90, 6), labels, None)["auc"] == pytest.approx(0.5, abs=0.15)


def test_the_classifier_is_the_minimum_of_the_regularised_likelihood(monkeypatch):
    monkeypatch.setattr(classify, "STRENGTHS", (0.1,))
    x, labels = three_classes()
    y = np.unique(labels, return_inverse=True)[1]
    standard = (x - x.mean(0)) / x.std(0)

    def probabilities(flat):
        logits = standard @ flat[:18].reshape(6, 3) + flat[18:]
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def cost(flat):
        return -0.1 * np.log(probabilities(flat)[np.arange(90), y]).sum() + 0.5 * (flat[:18] ** 2).sum()

    best = minimize(cost, np.zeros(21), tol=1e-8).x
    np.testing.assert_allclose(fit_linear(x, y, np.arange(90), 3)(x), probabilities(best), atol=2e-3)


def test_the_strength_is_the_one_that_predicts_other_patients_best():
    x = np.concatenate([draws(80, 1), 0.01 * draws(80, 200, seed=1)], 1)  # one feature tells, 200 mislead
    y = (x[:, 0] > 0).astype(int)
    x[:, 0] += draws(80, seed=2)
    inner = classify._inner_splits(y, np.arange(80), 2, 0)
    losses = {
        c: sum(classify._loss(classify._logistic(x[a], y[a], c)(x[b]), y[b]) for a, b in inner) for c in STRENGTHS
    }
    best = min(losses, key=losses.get)
    assert losses[best] < losses[1.0]
    np.testing.assert_array_equal(fit_linear(x, y, np.arange(80), 2)(x), classify._logistic(x, y, best)(x))


def test_a_linear_probe_does_not_depend_on_the_scale_of_features():
    x, labels = three_classes()
    rescaled = linear(x * np.array([1, 10, 100, 1e3, 1e4, 1e-3]) + 7, labels, None)
    assert rescaled == pytest.approx(linear(x, labels, None), abs=1e-3)


@pytest.mark.parametrize("probe", [linear, knn])
def test_equal_questions_get_equal_answers_in_threads_and_draw_nothing(probe):
    x, labels = three_classes()
    state = np.random.get_state()[1].copy()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: probe(x, labels, None, folds=2), range(3)))
    assert all(answer == answers[0] for answer in answers)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("probe", [linear, knn])
def test_images_without_a_label_are_left_out_and_counted(probe):
    x, labels = three_classes()
    empty = [None, "", float("nan")]
    answer = probe(np.concatenate([1e3 * draws(3, 6), x]), [*empty, *labels], [None, None, None, *range(90)])
    assert answer == probe(x, labels, range(90)) | {"unlabelled": 3}
    assert answer["images"] == 90


@pytest.mark.parametrize(
    "x",
    [
        np.full((60, 8), 0.1, np.float32),
        (0.1 + 1e-8 * draws(60, 8)).astype(np.float32),
        draws(60, 1) @ draws(1, 64, seed=1),
        1e-20 * draws(60, 8),
        1e20 * draws(60, 8),
        draws(60, 300),
        np.eye(60),
        np.where(np.arange(480).reshape(60, 8) == 17, 1e6, draws(60, 8)),
    ],
    ids=["constant", "rounding", "rank one", "tiny", "huge", "wide", "one each", "outlier"],
)
def test_awkward_features_are_answered_without_a_warning(x):
    labels = np.arange(60) % 3
    for probe in (linear, knn):
        assert 0 <= probe(x, labels, None)["macro_f1"] <= 1
    assert spread(x)["images"] == 60


# nearest neighbours


def test_neighbours_vote_by_their_cosine():
    x = np.array([[1, 0], [4, 3], [0, 2], [-5, 0]])  # cosines to (1, 0): 1, .8, 0, -1
    first, second, third = np.exp(np.array([1, 0.8, 0]) / 0.5)
    votes = np.array([first, second + third]) / (first + second + third)
    predict = fit_knn(x, np.array([0, 1, 1, 0]), 2, k=3, temperature=0.5)
    np.testing.assert_allclose(predict(np.array([[1, 0], [3, 0]])), [votes, votes])


def test_nearest_neighbours_find_clusters():
    x, labels = three_classes(apart=20)
    answer = knn(x, labels, None)
    assert answer["accuracy"] == answer["auc"] == 1
    assert set(answer) == set(linear(x, labels, None))


def test_more_neighbours_than_images_are_refused():
    x, labels = three_classes(30)
    with pytest.raises(ValueError, match="only 24 images to be neighbours: write k: 24"):
        knn(x, labels, None, k=25)


# what is missing


@pytest.mark.parametrize(
    ("x", "labels", "groups", "folds", "message"),
    [
        (draws(8, 2), ["a"] * 8, None, 5, "8 labelled images with only the class 'a'"),
        (draws(8, 2), [None] * 8, None, 5, "no label at all"),
        (draws(8, 2), ["a", "b"] * 4, None, 5, "class 'a' has 4 patients, too few for 5 folds: write folds: 4"),
        (draws(8, 2), ["a"] * 7 + ["b"], None, 2, "class 'b' has 1 patient, too few for 2 folds: leave its label"),
        (draws(8, 2), ["a", "b"] * 4, [0, 0, 0, 0, 1, 1, 1, 1], 3, "has 2 patients"),
        (draws(8, 2), ["a", "b"] * 4, [0, None, "", 3, 4, 5, 6, 7], 2, "2 of 8 labelled images have no patient"),
        (draws(8, 2), ["a", "b"] * 4, None, 1, "folds is 1"),
        (draws(7, 2), ["a", "b"] * 4, None, 2, "one row of each an image"),
        (draws(8), ["a", "b"] * 4, None, 2, "one row of each an image"),
        (np.full((8, 2), np.nan), ["a", "b"] * 4, None, 2, "of 8 of 8 images are not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(x, labels, groups, folds, message):
    for probe in (linear, lambda *a: knn(*a, k=2, folds=folds)):
        with pytest.raises(ValueError, match=message) as error:
            probe(x, labels, groups, folds) if probe is linear else probe(x, labels, groups)
        assert "\n" not in str(error.value)


# spread


def test_the_effective_rank_of_a_diagonal_matrix_is_the_perplexity_of_its_entries():
    assert effective_rank(np.diag([2.0, 2, 2, 2])) == pytest.approx(4)
    assert effective_rank(np.diag([3.0, 1, 0])) == pytest.approx(0.75**-0.75 * 0.25**-0.25)
    assert effective_rank(np.zeros((3, 2))) == 0


def test_the_spread_is_what_the_papers_define():
    x = draws(30, 5) + 1
    numbers = spread(x)
    unit = [row / np.sqrt(sum(v * v for v in row)) for row in x]
    eigenvalues = np.linalg.eigvalsh(x.T @ x)
    shares = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    variances = np.linalg.eigvalsh(np.cov(x.T))
    assert numbers["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert numbers["effective_rank_centred"] == pytest.approx(effective_rank(x - x.mean(0)))
    assert numbers["first_component"] == pytest.approx(variances.max() / variances.sum())
    assert numbers["mean_cosine"] == pytest.approx(np.mean([a @ b for a, b in combinations(unit, 2)]))
    assert numbers["relative_std"] == pytest.approx(np.mean([np.std(c) for c in np.transpose(unit)]) * 5**0.5)
    assert (numbers["images"], numbers["width"]) == (30, 5)


@pytest.mark.parametrize(
    "x",
    [np.full((50, 64), 0.1, np.float32), np.zeros((50, 64)), 1 + 1e-3 * draws(50, 64)],
    ids=["constant", "zero", "almost constant"],
)
def test_complete_collapse_is_said_in_plain_words(x):
    assert verdict(spread(x)).startswith("collapsed: every image gets almost the same features (")


@pytest.mark.parametrize(
    "x",
    [
        draws(50, 1) @ draws(1, 64, seed=1),
        draws(50, 3) @ draws(3, 64, seed=1),
        5 + draws(50, 3) @ draws(3, 64, seed=1),
        draws(50, 64) * np.array([100.0] + [1] * 63),
    ],
    ids=["rank one", "three directions", "three about a mean", "one outweighs all"],
)
def test_collapse_to_few_directions_is_said_in_plain_words(x):
    assert verdict(spread(x)).startswith("collapsed to few directions: ")


@pytest.mark.parametrize(
    "x",
    [
        draws(50, 64),
        3 + draws(50, 64),
        1e-20 * draws(50, 64),
        draws(50, 8) @ draws(8, 64, seed=1),
        draws(5, 64),
        draws(50, 2),
    ],
    ids=["healthy", "common mean", "tiny", "eight directions", "few images", "two wide"],
)
def test_features_that_spread_are_not_called_collapsed(x):
    assert verdict(spread(x)) is None


def test_an_untrained_network_is_not_called_collapsed():
    network = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        found = network.apply(lambda m: isinstance(m, nn.Linear) and nn.init.xavier_uniform_(m.weight))
        assert verdict(spread(found(torch.rand(60, 64)).numpy())) is None


@pytest.mark.parametrize(("x", "message"), [(draws(1, 4), "at least two images"), (np.full((3, 4), np.inf), "finite")])
def test_a_spread_of_nothing_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        spread(x)
