"""Any timm network as an encoder, against the network itself."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ussl import weights
from ussl.distributed import BatchNorm
from ussl.export import load, write_encoder
from ussl.parts import Mask
from ussl.testing import check_encoder
from ussl_plugins.encoders.timm import TimmEncoder
from ussl_plugins.initializations.dino import DinoFormat
from ussl_plugins.initializations.mocov3 import MocoV3Format
from ussl_plugins.initializations.resnet import ResNetFormat
from ussl_plugins.initializations.vision_transformer import VisionTransformerFormat

FORMATS = {
    "dino": DinoFormat,
    "mocov3": MocoV3Format,
    "resnet": ResNetFormat,
    "vision_transformer": VisionTransformerFormat,
}
TINY = ["test_resnet", "test_convnext", "test_efficientnet", "test_vit"]  # timm's own networks for tests


def made(model="test_resnet", **options):
    torch.manual_seed(0)
    encoder = TimmEncoder(model=model, **options)
    for module in encoder.network.modules():
        if isinstance(module, _BatchNorm):  # statistics as after some training
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


def plain(encoder):
    """timm's network with the encoder's weights."""
    network = timm.create_model(encoder.model, num_classes=0)
    network.load_state_dict(encoder.network.state_dict())
    return network.eval()


def normalised(images, encoder):
    mean, std = (torch.tensor(x)[:, None, None] for x in (encoder.mean, encoder.std))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", TINY)
def test_patches_are_the_last_feature_map_and_the_image_feature_is_timms(model, channels):
    encoder, images = made(model).eval(), torch.rand(2, channels, 160, 160)
    tokens, network = encoder(images), plain(encoder)
    features = network.forward_features(normalised(images, encoder))
    expected = features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    close(tokens.patches[:, 0], expected)
    close(tokens.pooled[:, 0], network(normalised(images, encoder)))
    assert tokens.where is None
    assert tokens.grid == encoder.grid(160, 160) == (160 // encoder.patch,) * 2


def test_the_feature_of_a_resnet_is_the_average_of_its_patches():
    tokens = made().eval()(torch.rand(2, 1, 96, 64))
    close(tokens.pooled, tokens.patches.mean(2))


def test_a_network_with_channels_last_gives_its_patches_row_by_row():
    model = "swin_tiny_patch4_window7_224"
    encoder = TimmEncoder(model=model, image_size=64).eval()
    tokens = encoder(images := torch.rand(1, 1, 64, 96))
    features = encoder.network.forward_features(normalised(images, encoder))
    assert tokens.grid == features.shape[1:3] == (2, 3)
    close(tokens.patches[0, 0], torch.stack([features[0, row, column] for row in range(2) for column in range(3)]))


@pytest.mark.parametrize("model", TINY[:3])
@pytest.mark.parametrize("size", [(33, 64), (100, 70), (40, 129), (160, 95)])
def test_the_grid_of_a_size_that_the_stride_does_not_divide_is_that_of_the_map(model, size):
    encoder = made(model).eval()
    grid = encoder.grid(*size)
    tokens, network = encoder(torch.rand(1, 1, *size)), plain(encoder)
    assert grid == tokens.grid == network.forward_features(torch.rand(1, 3, *size)).shape[2:]
    if model == "test_resnet":
        assert grid == tuple(-(-side // 32) for side in size)
    if model == "test_convnext":
        assert grid == tuple(side // 32 for side in size)


@pytest.mark.parametrize("model", [*TINY, "test_byobnet"])
def test_it_keeps_the_contract_of_encoders(model):
    check_encoder(made(model))


@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize("part", ["pooled", "patches"])
def test_every_parameter_has_a_gradient_whatever_the_objective_looks_at(model, part):
    encoder = made(model)
    getattr(encoder(torch.rand(2, 1, 64, 64)), part).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_mask_changes_pixels_and_nothing_else():
    encoder, images = made().eval(), torch.rand(2, 1, 64, 64)
    hidden = torch.zeros(2, 3, 4, dtype=torch.bool)
    hidden[..., 0] = True
    changed = torch.rand(2, 3, 1, 64, 64)
    tokens = encoder(images, Mask(hidden, hidden[:, :, None], 3, 1, "fill", changed))
    for k in range(3):
        close(tokens.pooled[:, k], encoder(changed[:, k]).pooled[:, 0])
    with pytest.raises(ValueError, match=r"timm cannot encode a mask that says 'drop': it takes \['fill'\]"):
        encoder(images, Mask(hidden, hidden[:, :, None], 3, 1, "drop"))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_batch_norms_are_those_of_all_devices_with_timms_names_and_results(model):
    encoder, network = made(model), timm.create_model(model, num_classes=0)
    norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert all(isinstance(m, BatchNorm) for m in norms)
    assert list(encoder.network.state_dict()) == list(network.state_dict())
    network.load_state_dict(encoder.network.state_dict())
    images = torch.rand(4, 3, 64, 64)
    close(encoder.train()(images).pooled[:, 0], network.train()(normalised(images, encoder)))
    for name, buffer in network.named_buffers():
        close(encoder.network.get_buffer(name), buffer)


def test_weights_begin_as_timms_do():
    torch.manual_seed(3)
    expected = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.manual_seed(3)
    found = TimmEncoder(model="test_resnet").network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_paths_are_dropped_as_timm_drops_them():
    encoder = made("test_convnext", drop_path=0.4)
    rates = [m.drop_prob for m in encoder.network.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet5"}, "timm has no model 'resnet5'; did you mean resnet5"),
        ({"model": "resnet50.a1_in1k"}, "write model: resnet50 and init: resnet50.a1_in1k"),
        ({"model": "mobilenetv3_small_050"}, r"features of two widths \(\(1024,\) for the image, 288 for a patch\)"),
        ({"model": "levit_128s"}, "tokens of levit_128s form no grid: use a network such as vit"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"model": "vgg11", "drop_path": 0.1}, "drop_path has no effect on vgg11: leave it out"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"init_matched": 0.0}, "timm: init_matched must be in"),
        ({"init": "no/such/file.pth"}, "no weight file and no pretrained timm model is called 'no/such/file.pth'"),
    ],
)
def test_options_that_make_no_encoder_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"model": "test_resnet", **options})


def test_an_image_that_a_network_cannot_take_is_refused_in_its_own_words():
    with pytest.raises(ValueError, match=r"test_vit takes no images of 100 x 64 \(Input height \(100\) should be div"):
        made("test_vit")(torch.rand(1, 1, 100, 64))


@pytest.mark.parametrize("model", TINY)
def test_an_exported_encoder_is_timms_network(model, tmp_path):
    encoder, images = made(model, image_size=96).eval(), torch.rand(2, 1, 96, 96)
    write_encoder(encoder, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert network.pretrained_cfg["input_size"][-1] == 96
    close(network(normalised(images, encoder)), encoder(images).pooled[:, 0])
    loaded = load(tmp_path)
    assert loaded.image_size == 96
    close(loaded.embed(images), encoder(images).pooled[:, 0])
    close(loaded.tokens(images), encoder(images).patches[:, 0])


def other(state, **more):
    """Another network of the same names, with a classifier."""
    return {name: t + 0.5 if t.is_floating_point() else t for name, t in state.items()} | more


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},  # of old torch
        lambda state: {"state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()}},  # MoCo-v3
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}, "student": {}},  # DINO
    ],
)
def test_weights_of_known_formats_start_a_resnet(wrap, tmp_path):
    wanted = other(timm.create_model("resnet18", num_classes=0).state_dict())
    torch.save(wrap({**wanted, "fc.weight": torch.zeros(2, 512)}), tmp_path / "w.pth")
    encoder = TimmEncoder(model="resnet18", init=tmp_path / "w.pth")
    assert encoder.initialize(FORMATS) == [f"weights {tmp_path / 'w.pth'}: 120 of 120 tensors loaded"]
    found = encoder.network.state_dict()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())
    assert encoder.lineage()[0]["sha256"] == weights.digest(tmp_path / "w.pth")


def test_a_file_of_timms_own_names_needs_no_format(tmp_path):
    wanted = other(timm.create_model("test_convnext").state_dict())
    torch.save({"state_dict": wanted}, tmp_path / "w.pth")
    encoder = TimmEncoder(model="test_convnext", init=tmp_path / "w.pth")
    assert len(encoder.initialize(FORMATS)) == 1
    assert torch.equal(encoder.network.stem[0].weight, wanted["stem.0.weight"])
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is of no known format"):
        encoder.initialize(FORMATS)


def test_positions_of_a_transformer_are_resized_as_timm_does_it(tmp_path):
    source = timm.create_model("test_vit", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    encoder = TimmEncoder(model="test_vit", image_size=64, init=tmp_path / "w.pth")
    assert len(encoder.initialize(FORMATS)) == 1
    wanted = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=[4, 4], old_size=[10, 10])
    assert torch.equal(encoder.network.pos_embed, wanted)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "w.pth")
    encoder = TimmEncoder(model="resnet34", init=tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not fit this network"):
        encoder.initialize(FORMATS)
    with pytest.raises(ValueError, match=r"resnet18\.a1_in1k are weights of resnet18: write encoder.model: resnet18"):
        TimmEncoder(model="resnet34", init="resnet18.a1_in1k").initialize(FORMATS)


def test_a_timm_name_starts_the_network_with_timms_weights(tmp_path, monkeypatch):
    wanted = other(timm.create_model("test_resnet").state_dict())
    torch.save(wanted, tmp_path / "w.bin")
    monkeypatch.setattr(weights, "from_hub", lambda *a: tmp_path / "w.bin")
    encoder = TimmEncoder(model="test_resnet", init="test_resnet.r160_in1k")
    assert encoder.mean == (0.5, 0.5, 0.5)
    assert len(encoder.initialize(FORMATS)) == 1
    assert torch.equal(encoder.network.layer4[0].bn1.running_var, wanted["layer4.0.bn1.running_var"])
    (entry,) = encoder.lineage()
    assert entry["licence"] == "apache-2.0"


def test_images_can_go_in_as_they_are():
    encoder = made(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    images = torch.rand(1, 1, 64, 64)
    close(encoder(images).pooled[:, 0], plain(encoder)(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("model", TINY)
def test_it_works_in_double_precision_and_survives_a_deep_copy(model):
    encoder = made(model).eval().double()
    images = torch.rand(1, 1, 64, 96, dtype=torch.float64)
    tokens = encoder(images)
    assert tokens.patches.dtype == tokens.pooled.dtype == torch.float64
    assert torch.equal(copy.deepcopy(encoder)(images).patches, tokens.patches)


def test_an_exported_resnet_takes_pictures_that_its_stride_does_not_divide(tmp_path):
    torch.manual_seed(0)
    encoder = TimmEncoder(model="test_resnet", image_size=64).eval()
    write_encoder(encoder, tmp_path / "encoder", {})
    image = torch.rand(2, 1, 50, 70)
    found = load(tmp_path / "encoder").encoder
    with torch.no_grad():
        theirs, ours = encoder(image), found(image)
    assert found.grid(50, 70) == ours.grid == theirs.grid == encoder.grid(50, 70)
    torch.testing.assert_close(ours.patches, theirs.patches)
    torch.testing.assert_close(ours.pooled, theirs.pooled)
