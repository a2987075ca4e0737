"""What a newcomer gets wrong, from the command line: one clear line and exit code 2, or it simply works."""

import numpy as np
import pytest
from PIL import Image

from ussl.cli import main

RECIPE = """
# small enough for tests
augmentation: {name: crop, size: 16}
encoder: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, image_size: 16}
masking: {name: random, ratio: 0.5}
target: pixels
objective: {name: masked_prediction, width: 16, depth: 1, heads: 2}
loader: {workers: 0}
train: {steps: 1, batch_size: 4, threads: 1}
"""


@pytest.fixture
def speckle():
    return np.random.default_rng(0).rayleigh(60, (24, 30)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def fit(tmp_path, capsys):
    """fit(options): exit code and the lines on stderr that are not the progress bar."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def fit(*more, recipe="tiny.yaml"):
        code = main(["fit", "--recipe", str(tmp_path / recipe), "--out", str(tmp_path / "run"), *map(str, more)])
        return code, [line for line in capsys.readouterr().err.splitlines() if "step/s" not in line and line.strip()]

    return fit


def assert_refused(answer, *said):
    code, lines = answer
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for words in said:
        assert words in lines[0]


def folder_of(folder, write, count=4):
    folder.mkdir()
    for i in range(count):
        write(folder / f"{i}.png")
    return folder


def test_an_empty_folder(fit, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert_refused(fit("--data", tmp_path / "pictures"), "pictures", ".png")


def test_a_folder_that_is_not_there(fit, tmp_path):
    assert_refused(fit("--data", tmp_path / "nowhere"), "nowhere")


def test_a_text_file_named_png(fit, tmp_path):
    folder = folder_of(tmp_path / "pictures", lambda path: path.write_text("hello"))
    assert_refused(fit("--data", folder), ".png", "take it out of the data")


def test_a_truncated_picture(fit, tmp_path, speckle):
    def write(path):
        Image.fromarray(speckle).save(path)
        path.write_bytes(path.read_bytes()[:-200])

    assert_refused(fit("--data", folder_of(tmp_path / "pictures", write)), ".png")


KINDS = {
    "16-bit": lambda x: Image.fromarray(x.astype(np.uint16) * 257),
    "RGBA": lambda x: Image.fromarray(np.dstack([x, x, x, np.full_like(x, 9)])),
    "palette": lambda x: Image.fromarray(x).convert("RGB").convert("P"),
    "one pixel": lambda x: Image.fromarray(x[:1, :1]),
    "two-valued": lambda x: Image.fromarray(x).convert("1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unusual_pictures_are_read(fit, tmp_path, speckle, kind):
    folder = folder_of(tmp_path / "pictures", lambda path: KINDS[kind](speckle).save(path))
    assert fit("--data", folder) == (0, [])


def test_cmyk_and_rotated_pictures_are_read(fit, tmp_path, speckle):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn

    def write(path):
        Image.fromarray(np.dstack([speckle] * 4), mode="CMYK").save(path.with_suffix(".jpg"), exif=exif)

    assert fit("--data", folder_of(tmp_path / "pictures", write)) == (0, [])


def test_a_manifest_without_its_column(fit, tmp_path):
    (tmp_path / "images.csv").write_text("file,label\na.png,benign\n")
    assert_refused(fit("--data", tmp_path / "images.csv"), "path", "file, label")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--masking", "randon"], 'did you mean "random"'),
        (["--masking.ratoi", "0.5"], 'did you mean "ratio"'),
        (["--mask.ratio", "0.5"], 'did you mean "masking"'),
        (["--train.batch_size", "many"], "train.batch_size"),
        (["--encoder.size", "larg"], "encoder"),
        (["--train.steps"], "VALUE"),
        (["--recipe", "urmf"], "did you mean"),
    ],
)
def test_a_word_or_value_that_is_not_known(fit, options, said):
    assert_refused(fit(*options), said)


def test_a_recipe_that_is_not_yaml(fit, tmp_path):
    (tmp_path / "bad.yaml").write_text("encoder: {name: vit\nmasking: [")
    assert_refused(fit(recipe="bad.yaml"), "bad.yaml:2: not YAML")


def test_no_data(fit):
    assert_refused(fit(), "--data", "USSL_DATA")


def test_no_hub(fit, monkeypatch, tmp_path, speckle):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    folder = folder_of(tmp_path / "pictures", lambda path: Image.fromarray(speckle).save(path))
    assert_refused(fit("--data", folder, "--target", "biomedclip"), "open_clip_pytorch_model.bin", "target.weights")


def test_the_extra_that_holds_the_teacher_is_not_installed(fit, monkeypatch, tmp_path, speckle):
    from ussl_plugins.targets import lite0

    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package_here")
    folder = folder_of(tmp_path / "pictures", lambda path: Image.fromarray(speckle).save(path))
    assert_refused(fit("--data", folder, "--target", "lite0"), 'pip install "ultrasound-ssl[quickstart]"')


def test_an_out_folder_that_exists(fit, tmp_path, speckle):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    folder = folder_of(tmp_path / "pictures", lambda path: Image.fromarray(speckle).save(path))
    assert_refused(fit("--data", folder), "--overwrite")
