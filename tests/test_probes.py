import csv
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from ussl.evaluate.features import RawPixels, features
from ussl.evaluate.pictures import LabelledPictures, draw
from ussl.evaluate.spread import verdict
from ussl.parts import Encoder, Probe, Source, Tokens
from ussl_plugins.probes import knn, linear, spread

CPU = torch.device("cpu")
PROBES = {"linear": linear.LinearProbe, "knn": knn.NearestNeighbours, "spread": spread.Spread}


class Discs(Source):
    """Pictures, two of each patient, on which the label is how bright the left half is."""

    def __init__(self, count=40, colour=False):
        self.count, self.colour, self.reads = count, colour, 0

    def rows(self):
        for i in range(self.count):
            yield {"path": f"{i}.png", "label": "bright" if i // 2 % 2 else "dark", "patient": f"p{i // 2}"}

    def read(self, row):
        self.reads += 1
        i = int(row["path"].split(".")[0])
        picture = np.random.default_rng(i).integers(0, 40, (20 + i % 3, 24), dtype=np.uint8)
        picture[:, :12] += 100 if row["label"] == "bright" else 30
        return np.repeat(picture[..., None], 3, 2) if self.colour else picture


class Table(Discs):
    """`Discs` with other columns: `change` gets a row and its number."""

    def __init__(self, change, count=40):
        super().__init__(count)
        self.change = change

    def rows(self):
        for i, row in enumerate(super().rows()):
            yield self.change(i, row)


class Halves(Encoder):
    """Means of the left and right half, of images 12 pixels wide."""

    width, patch, accepts = 2, 6, frozenset()
    image_size = 12

    def __init__(self):
        super().__init__()
        self.sizes = set()

    def grid(self, height, width):
        return 1, 2

    def forward(self, image, mask=None):
        self.sizes.add(tuple(image.shape[1:]))
        return Tokens(image.mean(1).unflatten(-1, (2, -1)).mean((1, 3))[:, None], None, None, (1, 2))


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_a_probe_sees_what_the_encoder_sees(name):
    numbers = PROBES[name](Discs()).run(Halves(), CPU)
    assert numbers["accuracy"] == numbers["macro_f1"] == numbers["auc"] == 1
    assert (numbers["images"], numbers["unlabelled"]) == (40, 0)
    assert all(type(value) is float for value in numbers.values())


@pytest.mark.parametrize("name", PROBES)
def test_pictures_are_decoded_once_and_answers_repeat(name):
    source, encoder = Discs(), Halves()
    probe = PROBES[name](source)
    first = probe.run(encoder, CPU)
    probe.run(RawPixels(), CPU)
    assert probe.run(encoder, CPU) == first
    assert source.reads == 40
    assert encoder.sizes == {(1, 12, 12)}


def test_the_size_written_is_the_size_used():
    encoder = Halves()
    spread.Spread(Discs(), size=8).run(encoder, CPU)
    assert encoder.sizes == {(1, 8, 8)}


def test_kept_pictures_give_the_features_of_the_pictures_themselves():
    for source in (Discs(6), Discs(6, colour=True)):
        data = LabelledPictures(source, label="label", group=None)
        directly = features(Halves(), [source.read(row) for row in source.rows()], CPU, 12)
        np.testing.assert_allclose(data.features(Halves(), CPU), directly, atol=0.5 / 255)


def test_images_without_a_label_are_not_read_but_counted():
    source = Table(lambda i, row: row | {"label": None if i < 6 else row["label"]})
    numbers = linear.LinearProbe(source).run(Halves(), CPU)
    assert (numbers["images"], numbers["unlabelled"], source.reads) == (34, 6, 34)


@pytest.mark.parametrize("name", ["linear", "knn"])
def test_a_column_that_is_not_there_is_answered_with_those_that_are(name):
    with pytest.raises(ValueError, match="no column 'birads' with labels; write label: one of path, label, patient"):
        PROBES[name](Discs(), label="birads").run(Halves(), CPU)
    with pytest.raises(ValueError, match=r"no column 'case'.* one of path, label, patient, or group: null"):
        PROBES[name](Discs(), group="case").run(Halves(), CPU)


def test_without_a_column_of_patients_every_image_is_its_own_only_when_said():
    source = Table(lambda i, row: {name: row[name] for name in ("path", "label")})
    with pytest.raises(ValueError, match="no column 'patient'"):
        linear.LinearProbe(source).run(Halves(), CPU)
    assert source.reads == 0
    assert linear.LinearProbe(source, group=None).run(Halves(), CPU)["images"] == 40


def test_a_limit_takes_as_many_patients_as_can_be():
    groups = ["a"] * 50 + ["b"] * 3 + ["c"] * 2 + ["d"]
    assert sorted(groups[i] for i in draw(groups, 4)) == ["a", "b", "c", "d"]
    assert sorted(groups[i] for i in draw(groups, 8)) == ["a", "a", "a", "b", "b", "c", "c", "d"]
    assert draw(groups, 8) == draw(groups, 8) == sorted(draw(groups, 8))
    assert draw(groups, 100) == draw(groups, None) == list(range(56))
    assert set(draw(groups, 4)) != {0, 50, 53, 55}  # not the first of each


def test_a_limited_probe_reads_no_more_than_its_limit():
    source = Discs()
    assert linear.LinearProbe(source, limit=20).run(Halves(), CPU)["images"] == source.reads == 20
    assert spread.Spread(Discs(), limit=7).run(Halves(), CPU)["images"] == 7


def test_the_spread_needs_no_labels_and_sees_a_collapse():
    class Constant(Halves):
        def forward(self, image, mask=None):
            return Tokens(torch.ones(len(image), 1, 8), None, None, (1, 2))

    source = Table(lambda i, row: {"path": row["path"], "label": "dark"})
    assert verdict(spread.Spread(source).run(RawPixels(), CPU)) is None
    assert verdict(spread.Spread(source).run(Constant(), CPU)).startswith("collapsed: ")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"every": 0}, "every is 0"),
        ("knn", {"every": -1}, "every is -1"),
        ("spread", {"every": 0}, "every is 0"),
        ("linear", {"folds": 1}, "folds is 1"),
        ("knn", {"k": 0}, "k is 0"),
        ("knn", {"temperature": 0}, "temperature 0"),
        ("linear", {"size": 0}, "size is 0"),
        ("spread", {"limit": 1}, "limit is 1"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(name, options, message):
    source = Discs()
    with pytest.raises(ValueError, match=message):
        PROBES[name](source, **options)
    assert source.reads == 0


def test_a_picture_that_cannot_be_read_is_named():
    class Broken(Discs):
        def read(self, row):
            return super().read(row).astype(float if row["path"] == "7.png" else np.uint8)

    with pytest.raises(ValueError, match=r"^7.png: a picture is uint8 .* not float64 \(21, 24\)$"):
        spread.Spread(Broken()).run(Halves(), CPU)


def test_a_source_without_images_is_refused():
    for probe in PROBES.values():
        with pytest.raises(ValueError, match="no images"):
            probe(Discs(0)).run(Halves(), CPU)


@pytest.mark.parametrize(("module", "name"), [(linear, "linear"), (knn, "knn"), (spread, "spread")])
def test_a_probe_is_offered_by_its_name_and_takes_options_by_keyword(module, name):
    assert module.ussl_probes() == {name: PROBES[name]}
    assert issubclass(PROBES[name], Probe)
    _, source, *options = inspect.signature(PROBES[name].__init__).parameters.values()
    assert source.name == "source"
    assert options
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    assert PROBES[name](Discs(), every=2.5).every == 2.5


class Liver(Source):
    """40 real pictures: twenty with a benign mass, twenty with a malignant one."""

    def __init__(self, folder):
        self.folder = folder

    def rows(self):
        with (self.folder / "manifest.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == "liver735"]
        for label in ("benign", "malignant"):
            yield from [row for row in rows if row["label"] == label][:20]

    def read(self, row):
        return np.asarray(Image.open(self.folder / row["path"]).convert("L"))


def test_raw_pixels_of_real_pictures_are_probed(ultrasound):
    for name, probe in PROBES.items():
        numbers = probe(Liver(ultrasound), size=64).run(RawPixels(), CPU)
        assert numbers["images"] == 40
        if name == "spread":
            assert verdict(numbers) is None
        else:
            assert 0.4 < numbers["auc"] <= 1
