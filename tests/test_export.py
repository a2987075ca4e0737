"""Encoders out of a run: what is written, what timm, onnxruntime and ussl.load read of it."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import ussl
from ussl.errors import RunFailed
from ussl.export import export_run, write_encoder
from ussl.parts import Encoder, Tokens
from ussl_plugins.encoders.vit import VisionTransformer

SHAPES = [
    {"patch": 8, "image_size": 64},
    {"patch": 14, "image_size": 56},
    {"patch": 16, "image_size": 64, "width": 48, "heads": 4},
]


def small(**options):
    torch.manual_seed(0)
    encoder = VisionTransformer(**{"size": "tiny", "depth": 2, "patch": 16, "image_size": 32, **options})
    return encoder.eval()


def normalised(images, encoder):
    mean, std = (torch.tensor(x)[:, None, None] for x in (encoder.mean, encoder.std))
    return (images.expand(-1, 3, -1, -1) - mean) / std


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    write_encoder(small(), tmp_path / "run" / "encoder", {"export": "ema"})
    return tmp_path / "run"


@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize("shape", SHAPES)
def test_timm_loads_identical_tokens(tmp_path, shape, pooling):
    encoder = small(**shape, pooling=pooling)
    write_encoder(encoder, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    tokens = encoder(images)
    theirs = network.forward_features(normalised(images, encoder))
    torch.testing.assert_close(theirs[:, 1:], tokens.patches[:, 0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(network(normalised(images, encoder)), tokens.pooled[:, 0], atol=2e-6, rtol=1e-5)
    assert tuple(network.pretrained_cfg["mean"]) == encoder.mean
    assert {k: v for k, v in network.state_dict().items() if not torch.equal(v, encoder.to_timm()[0][k])} == {}


def test_timm_can_average_an_encoder_of_the_class_token(run):
    network = timm.create_model(f"local-dir:{run}/encoder", pretrained=True, global_pool="avg").eval()
    images = torch.rand(1, 3, 32, 32)
    patches = small()(images).patches[:, 0]
    torch.testing.assert_close(network(normalised(images, small())), patches.mean(1), atol=2e-6, rtol=1e-5)


def test_timm_can_put_a_classifier_on_it(run):
    network = timm.create_model(f"local-dir:{run}/encoder", pretrained=True, num_classes=5)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_the_architecture_is_one_that_timm_knows():
    named = {8: "vit_base_patch8_224", 16: "vit_base_patch16_224", 14: "vit_base_patch16_224"}
    with torch.device("meta"):
        assert {p: VisionTransformer(patch=p).to_timm()[1]["architecture"] for p in named} == named
        assert VisionTransformer(size="huge", patch=16).to_timm()[1]["architecture"] == "vit_huge_patch14_224"


def test_identical_weights_give_identical_bytes(tmp_path):
    encoder, other = small(), small(drop_path=0.1)
    write_encoder(encoder, tmp_path / "a", {"weights": [], "export": "ema"})
    other.load_state_dict(dict(reversed(encoder.state_dict().items())))
    write_encoder(other, tmp_path / "b", {"export": "ema", "weights": []})
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with torch.no_grad():
        other.network.norm.bias[3] += 1
    write_encoder(other, tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "b" / "model.safetensors").read_bytes()


def test_half_precision_weights_are_written_in_full(tmp_path):
    from safetensors.torch import load_file

    write_encoder(small().bfloat16(), tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_what_is_known_of_the_weights_lies_in_the_configuration(run):
    config = json.loads((run / "encoder" / "config.json").read_text())
    assert config["ussl"]["export"] == "ema"
    assert sorted(file.name for file in (run / "encoder").iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_the_earlier_encoder(run, monkeypatch):
    before = (run / "encoder" / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunFailed, match=r"could not be written to .*encoder: No space left on device"):
        write_encoder(small(), run / "encoder")
    assert (run / "encoder" / "model.safetensors").read_bytes() == before
    assert len(list((run / "encoder").iterdir())) == 2


@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (32, 32)), (1, (48, 16))])
def test_a_loaded_run_gives_the_encoders_tokens(tmp_path, pooling, channels, size):
    encoder = small(pooling=pooling, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    write_encoder(encoder, tmp_path / "encoder")
    loaded, images = ussl.load(tmp_path), torch.rand(2, channels, *size)
    expected = encoder(images)
    torch.testing.assert_close(loaded.tokens(images), expected.patches[:, 0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(loaded.embed(images), expected.pooled[:, 0], atol=2e-6, rtol=1e-5)
    assert not loaded.embed(images).requires_grad
    assert (loaded.width, loaded.image_size, loaded.mean, loaded.std) == (192, 32, encoder.mean, encoder.std)


def test_an_encoder_folder_and_a_single_image_are_loaded_too(run):
    loaded, image = ussl.load(run / "encoder").to("cpu"), torch.rand(1, 32, 32)
    assert torch.equal(loaded.tokens(image), ussl.load(str(run)).tokens(image[None]))


def test_eight_bit_images_are_scaled(run):
    loaded, pixels = ussl.load(run), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.embed(pixels), loaded.embed(pixels / 255))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 32, 32) * 255, r"must lie in \[0, 1\].*divide 8-bit values by 255"),
        (torch.rand(1, 3, 32, 32) - 0.5, r"must lie in \[0, 1\].*do not normalise"),
        (torch.full((1, 1, 32, 32), torch.nan), r"must lie in \[0, 1\]"),
        (torch.rand(1, 4, 32, 32), r"C 1 or 3, not \(1, 4, 32, 32\)"),
        (torch.rand(32, 32), r"not \(32, 32\)"),
        (torch.rand(0, 3, 32, 32), r"not \(0, 3, 32, 32\)"),
        (torch.ones(1, 1, 32, 32, dtype=torch.int64), "not torch.int64"),
        (torch.rand(1, 1, 30, 32), "30 x 32 does not divide into patches of 16: use 32 x 32"),
        (np.zeros((1, 1, 32, 32)), r"not ndarray: make one with prepare"),
    ],
)
def test_images_of_another_kind_are_refused_in_one_line(run, images, message):
    with pytest.raises(ValueError, match=message) as refused:
        ussl.load(run).embed(images)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("colour", [True, False])
def test_a_picture_is_prepared_as_pillow_resizes_it(run, tmp_path, colour):
    loaded = ussl.load(run)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3)[: 3 if colour else 2], dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "picture.png")
    expected = torch.tensor(np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC))) / 255
    expected = expected.reshape(1, 32, 32, -1).permute(0, 3, 1, 2)
    for given in (pixels, picture, tmp_path / "picture.png", str(tmp_path / "picture.png")):
        prepared = loaded.prepare(given)
        torch.testing.assert_close(prepared, expected, atol=1.5 / 255, rtol=0)
        assert loaded.embed(prepared).shape == (1, 192)


@pytest.mark.parametrize("colour", [True, False])
def test_a_picture_is_blurred_before_it_is_resized_where_the_encoder_was_trained_so(tmp_path, colour):
    encoder = small()
    write_encoder(encoder, tmp_path / "sharp")
    encoder.preprocess = {"gaussian_blur": 1.1}
    write_encoder(encoder, tmp_path / "blurred")
    picture = np.random.default_rng(0).integers(0, 256, (60, 45, 3) if colour else (60, 45), dtype=np.uint8)
    loaded, sharp = ussl.load(tmp_path / "blurred"), ussl.load(tmp_path / "sharp")
    blurred = cv2.GaussianBlur(picture, (0, 0), 1.1)
    assert loaded.preprocess == loaded.encoder.preprocess == {"gaussian_blur": 1.1}
    assert torch.equal(loaded.prepare(picture), sharp.prepare(blurred))
    assert not torch.equal(loaded.prepare(picture), sharp.prepare(picture))
    assert torch.equal(loaded.embed(loaded.prepare(picture)), sharp.embed(sharp.prepare(blurred)))


def test_the_blur_is_in_the_configuration_and_only_there_where_there_is_one(run):
    assert "preprocess" not in json.loads((run / "encoder" / "config.json").read_text())["ussl"]
    encoder = small()
    encoder.preprocess = {"gaussian_blur": 1.1}
    write_encoder(encoder, run / "encoder", {"export": "ema"})
    said = json.loads((run / "encoder" / "config.json").read_text())["ussl"]
    assert said["preprocess"] == {"gaussian_blur": 1.1}
    assert said["export"] == "ema"


def test_an_encoder_that_wants_what_is_not_known_here_is_refused(run):
    file = run / "encoder" / "config.json"
    config = json.loads(file.read_text())
    config["ussl"]["preprocess"] = {"gaussian_blur": 1.1, "median_filter": 3}
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json wants preprocess median_filter, known here are gaussian_blur"):
        ussl.load(run)


@pytest.mark.parametrize("picture", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), 3])
def test_what_is_no_picture_is_refused(run, picture):
    with pytest.raises(ValueError, match="a picture is a file, a PIL image or a uint8 array"):
        ussl.load(run).prepare(picture)


def test_a_flipped_byte_in_the_weights_is_noticed(run):
    file = run / "encoder" / "model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="is damaged: it does not have the digest"):
        ussl.load(run)


def test_weights_that_are_not_those_of_the_configuration_are_refused(run):
    config = json.loads((run / "encoder" / "config.json").read_text())
    config["model_args"]["depth"] = 3
    (run / "encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not hold what its config"):
        ussl.load(run)


def test_folders_without_an_encoder_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        ussl.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run folder nor an encoder folder"):
        export_run(tmp_path, "timm")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no encoder yet, the run is not finished: continue it with `ussl fit --resu"):
        export_run(tmp_path, "onnx")


def test_export_to_timm_is_a_copy_of_the_encoder_folder(run, tmp_path):
    assert export_run(run, "timm") == run / "encoder"
    out = export_run(run, "timm", tmp_path / "new" / "folder")
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (run / "encoder" / name).read_bytes()
    assert len(list(out.iterdir())) == 2


def test_onnx_gives_the_same_tokens(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = small(depth=1)
    encoder.preprocess = {"gaussian_blur": 1.1}
    write_encoder(encoder, tmp_path / "encoder")
    file = export_run(tmp_path, "onnx")
    assert file == tmp_path / "encoder.onnx"
    assert sorted(made.name for made in tmp_path.iterdir()) == ["encoder", "encoder.onnx"]
    session = onnxruntime.InferenceSession(str(file))
    assert json.loads(session.get_modelmeta().custom_metadata_map["preprocess"]) == {"gaussian_blur": 1.1}
    for batch in (1, 3):
        images = torch.rand(batch, 3, 32, 32)
        tokens, embedding = session.run(["tokens", "embedding"], {"images": images.numpy()})
        expected = encoder(images)
        torch.testing.assert_close(torch.tensor(tokens), expected.patches[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(embedding), expected.pooled[:, 0], atol=1e-5, rtol=1e-5)


def test_missing_onnx_packages_are_one_line_on_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r'needs onnx: pip install "ultrasound-ssl\[onnx\]"'):
        export_run(run, "onnx")


def test_export_to_something_else_is_refused(run):
    with pytest.raises(ValueError, match="to timm or onnx, not to 'tflite'"):
        export_run(run, "tflite")


class Means(Encoder):
    """An encoder that timm does not know: each patch is its mean, times a weight."""

    width, patch, mean, std, accepts, image_size = 4, 8, (0.0,), (1.0,), frozenset(), 16

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), scale))

    def grid(self, height, width):
        return height // 8, width // 8

    def forward(self, image, mask=None):
        patches = nn.functional.avg_pool2d(image, 8).flatten(1)[:, None, :, None] * self.weight
        return Tokens(patches.mean(2), patches, None, self.grid(*image.shape[-2:]))


def test_an_encoder_that_timm_does_not_know_is_loaded_through_its_plugin(tmp_path, monkeypatch):
    monkeypatch.setattr("ussl.plugins.Host.get", lambda host, kind, name: {"means": Means}[name])
    write_encoder(Means(scale=3.0), tmp_path / "encoder", {"encoder": {"name": "means", "options": {"scale": 2.0}}})
    loaded, images = ussl.load(tmp_path), torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded.tokens(images), Means(scale=3.0)(images).patches[:, 0])
    with pytest.raises(ValueError, match="has no timm equivalent"):
        export_run(tmp_path, "timm", tmp_path / "out")
