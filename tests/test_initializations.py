"""Checkpoint formats: each written as its authors write it, from a small network, and read back."""

from __future__ import annotations

import argparse

import pytest
import torch
from timm.models.beit import Beit
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer as ViT
from torch import nn

from ussl import weights
from ussl_plugins.encoders.vit import VisionTransformer
from ussl_plugins.initializations.beit import BeitFormat
from ussl_plugins.initializations.dino import DinoFormat
from ussl_plugins.initializations.mocov3 import MocoV3Format
from ussl_plugins.initializations.resnet import ResNetFormat
from ussl_plugins.initializations.simclr import SimclrV2Format
from ussl_plugins.initializations.vision_transformer import VisionTransformerFormat

FORMATS = {
    "vision_transformer": VisionTransformerFormat,
    "dino": DinoFormat,
    "mocov3": MocoV3Format,
    "simclrv2": SimclrV2Format,
    "resnet": ResNetFormat,
    "beit": BeitFormat,
}
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def vit(seed=0, **options):
    torch.manual_seed(seed)
    return randomised(ViT(**{**SMALL, **options}))


def beit(seed=0, **options):
    torch.manual_seed(seed)
    return randomised(
        Beit(**{**SMALL, "use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1, **options})
    )


def resnet(seed=0):
    torch.manual_seed(seed)
    return randomised(ResNet(Bottleneck, (2, 1, 1, 1), channels=(4, 6, 8, 10), num_classes=0))


def randomised(network):
    """No two tensors alike, so that none can stand for another."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.1)
    return network.eval()


def state(network, prefix="", **more):
    held = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    return held | {prefix + name.replace("__", "."): torch.rand(size) for name, size in more.items()}


def trained(network):
    """The state of an optimizer that has made a step."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


DECODER = {
    "mask_token": (1, 1, 24),
    "decoder_pos_embed": (1, 5, 8),
    "decoder_embed__weight": (8, 24),
    "decoder_blocks__0__attn__qkv__weight": (24, 8),
    "decoder_norm__weight": (8,),
    "decoder_pred__weight": (192, 8),
}
DINO_HEAD = {
    "mlp__0__weight": (8, 24),
    "mlp__0__bias": (8,),
    "last_layer__weight_g": (9, 1),
    "last_layer__weight_v": (9, 8),
}
OLD_HEAD = {"projection_head__0__weight": (8, 24), "prototypes__weight_g": (9, 1), "prototypes__weight_v": (9, 8)}
VIT_PROJECTOR = {"head__0__weight": (9, 24), "head__1__running_mean": (9,), "head__3__weight": (9, 9)}


def headed(head, name="head"):
    return {f"{name}__{key}": size for key, size in head.items()}


class Convnet(nn.Module):
    """SimCLRv2's ResNet in the layout of its PyTorch conversion: modules are numbered, not named."""

    def __init__(self, layers=(2, 1, 1, 1), channels=(4, 6, 8, 10), stem=64):
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(conv(3, stem, 7, 2), norm(stem), nn.MaxPool2d(3, 2, 1)))
        came = stem
        for stage, (count, width) in enumerate(zip(layers, channels, strict=True)):
            group = nn.Module()
            group.blocks = nn.ModuleList()
            for i in range(count):
                group.blocks.append(block(came, width, 2 if stage and i == 0 else 1, i == 0))
                came = 4 * width
            self.net.append(group)
        self.fc = nn.Linear(came, 5)

    def forward(self, x):
        x = self.net[0](x)
        for group in list(self.net)[1:]:
            for part in group.blocks:
                side = part.projection.bn(part.projection.shortcut(x)) if hasattr(part, "projection") else x
                x = torch.relu(side + part.net(x))
        return x.mean((2, 3))


def conv(came, width, size, stride=1):
    return nn.Conv2d(came, width, size, stride, size // 2, bias=False)


def norm(width, relu=True):
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU() if relu else nn.Identity())


def block(came, width, stride, project):
    part = nn.Module()
    if project:
        part.projection = nn.Module()
        part.projection.shortcut = conv(came, 4 * width, 1, stride)
        part.projection.bn = norm(4 * width, relu=False)
    convolutions = conv(came, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)
    norms = norm(width), norm(width), norm(4 * width, relu=False)
    part.net = nn.Sequential(*(module for pair in zip(convolutions, norms, strict=True) for module in pair))
    return part


def simclr(seed=0, **options):
    torch.manual_seed(seed)
    return randomised(Convnet(**options))


def mae():
    args = argparse.Namespace(model="mae_vit_base_patch16", norm_pix_loss=True, output_dir="out")
    return {"model": state(vit(), **DECODER), "optimizer": trained(vit()), "epoch": 3, "scaler": {}, "args": args}


def dino(student, teacher):
    args = argparse.Namespace(arch="vit_base", out_dim=9)
    loss = {"center": torch.zeros(1, 9)}
    return {"student": student, "teacher": teacher, "epoch": 3, "args": args, "dino_loss": loss, "fp16_scaler": None}


def moco(network, **projector):
    held = state(network, "module.base_encoder.", **projector)
    other = vit(9) if isinstance(network, ViT) else resnet(9)
    held |= state(other, "module.momentum_encoder.", **projector)
    held |= {"module.predictor.0.weight": torch.rand(9, 9), "module.predictor.1.running_mean": torch.rand(9)}
    return {"epoch": 3, "arch": "vit_base", "state_dict": held, "optimizer": {"param_groups": []}, "scaler": {}}


def simmim():
    shared = state(beit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_fc_norm=False), "encoder.")
    return {"model": {**shared, "encoder.mask_token": torch.rand(1, 1, 24), "decoder.0.weight": torch.rand(192, 24)}}


VISION = "vision_transformer"
CHECKPOINTS = {  # name: format, checkpoint, the network in it, licence
    "mae with decoder": (VISION, mae, vit, "CC-BY-NC 4.0"),
    "mae encoder": (VISION, lambda: {"model": state(vit())}, vit, None),
    "deit": (VISION, lambda: {"model": state(vit(), head__weight=(5, 24))}, vit, None),
    "timm": (VISION, lambda: state(vit()), vit, None),
    "urfm": (
        VISION,
        lambda: {
            "model": "mae_vit_base_patch16_dec768d8b",
            "state_dict": state(vit(9), "module.", **DECODER),
            "ema_state_dict": state(vit(), "module.", **DECODER),
        },
        vit,
        "Apache-2.0 (stated by third parties, unverified)",
    ),
    "dino": (
        "dino",
        lambda: dino(
            state(vit(9), "module.backbone.") | state(nn.Module(), "module.", **headed(DINO_HEAD)),
            state(vit(), "backbone.") | state(nn.Module(), **headed(DINO_HEAD)),
        ),
        vit,
        "Apache-2.0",
    ),
    "dino, first names": (
        "dino",
        lambda: dino(state(vit(9), **OLD_HEAD), state(vit(), **OLD_HEAD)),
        vit,
        "Apache-2.0",
    ),
    "dino, student alone": ("dino", lambda: {"student": state(vit(), "module.backbone.")}, vit, "Apache-2.0"),
    "dino resnet": (
        "dino",
        lambda: dino(state(resnet(9), "module.backbone."), state(resnet(), "backbone.")),
        resnet,
        "Apache-2.0",
    ),
    "dino encoder": (VISION, lambda: state(vit()), vit, None),
    "mocov3": ("mocov3", lambda: moco(vit(), **VIT_PROJECTOR), vit, "CC-BY-NC 4.0"),
    "mocov3 resnet": ("mocov3", lambda: moco(resnet(), fc__0__weight=(9, 40)), resnet, "CC-BY-NC 4.0"),
    "mocov3 for deit": (VISION, lambda: {"model": state(vit())}, vit, None),
    "torchvision": ("resnet", lambda: state(resnet(), fc__weight=(5, 40), fc__bias=(5,)), resnet, None),
    "simclr": (
        "resnet",
        lambda: {"state_dict": state(resnet(), "module.backbone.", fc__0__weight=(5, 40))},
        resnet,
        None,
    ),
    "simclrv2": (
        "simclrv2",
        lambda: {"resnet": state(simclr()), "head": {"layers.0.weight": torch.rand(9, 40)}},
        None,
        "Apache-2.0",
    ),
    "beit": ("beit", lambda: {"model": state(beit(), head__weight=(21841, 24))}, beit, "MIT"),
    "usfm": ("beit", lambda: state(beit()), beit, "USFM: CC-BY-NC 4.0, BEiT and SimMIM: MIT"),
    "simmim": ("beit", simmim, None, "USFM: CC-BY-NC 4.0, BEiT and SimMIM: MIT"),
}


@pytest.fixture(params=CHECKPOINTS)
def case(request):
    form, checkpoint, network, licence = CHECKPOINTS[request.param]
    return form, checkpoint(), network, licence


def test_a_checkpoint_is_recognised_by_one_format_alone(case):
    form, checkpoint, _, _ = case
    assert [name for name, cls in FORMATS.items() if cls().recognises(checkpoint)] == [form]


def test_a_saved_checkpoint_holds_its_network_under_the_names_of_timm(case, tmp_path):
    form, checkpoint, network, _ = case
    torch.save(checkpoint, tmp_path / "w.pth")
    name, found = weights.recognise(weights.read(tmp_path / "w.pth"), "w.pth", FORMATS)
    assert name == form
    if network is not None:  # those that are renamed have tests of their own
        expected = network().state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_a_checkpoint_has_the_licence_of_its_publishers(case, tmp_path):
    _, checkpoint, _, licence = case
    torch.save(checkpoint, tmp_path / "w.pth")
    (entry,) = weights.lineage(tmp_path / "w.pth", FORMATS)
    assert entry["licence"] == licence


@pytest.mark.parametrize("name", [name for name, case in CHECKPOINTS.items() if case[2] is vit])
def test_an_encoder_that_starts_from_a_checkpoint_computes_what_its_network_does(tmp_path, name):
    torch.save(CHECKPOINTS[name][1](), tmp_path / "w.pth")
    encoder = VisionTransformer(width=24, depth=2, heads=2, image_size=16, patch=8, init=tmp_path / "w.pth").eval()
    (line,) = encoder.initialize(FORMATS)
    assert "30 of 30 tensors loaded" in line
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in weights.IMAGENET)
    with torch.no_grad():
        tokens, expected = encoder(images), vit().forward_features((images - mean) / std)
    torch.testing.assert_close(tokens.patches[:, 0], expected[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.pooled[:, 0], expected[:, 0], atol=1e-5, rtol=1e-5)


def test_a_network_that_simclr_trained_computes_the_same_in_timm():
    theirs, ours = simclr(), resnet(9)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    _, found = weights.recognise({"resnet": theirs.state_dict(), "head": {}}, "r101_1x_sk0.pth", FORMATS)
    assert weights.match(ours, found, 1.0, "r101_1x_sk0.pth").unexpected == []
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-6, rtol=1e-5)


def test_the_resnet_101_of_simclr_has_every_tensor_of_timms():
    import timm

    with torch.device("meta"):
        ours = timm.create_model("resnet101", num_classes=0).state_dict()
        theirs = Convnet((3, 4, 23, 3), (64, 128, 256, 512)).state_dict()
    found = SimclrV2Format().state({"resnet": theirs})
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in ours.items()}


def test_a_wide_or_a_selective_network_of_simclr_is_refused():
    wide = {"resnet": simclr(stem=192).state_dict()}
    with pytest.raises(
        ValueError, match=r"^r152_3x.pth: this SimCLRv2 network is 3 times as wide .* use a 1x network"
    ):
        weights.recognise(wide, "r152_3x.pth", FORMATS)
    selective = {"resnet": {**simclr().state_dict(), "net.1.blocks.0.net.2.mixing_conv.0.weight": torch.ones(1)}}
    with pytest.raises(ValueError, match=r"selective kernels, .*: use an sk0 network"):
        weights.recognise(selective, "r50_1x_sk1.pth", FORMATS)


def test_shared_relative_positions_are_those_of_every_block():
    checkpoint = simmim()
    theirs = beit(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_fc_norm=False)
    ours = beit(9, use_fc_norm=False)
    _, found = weights.recognise(checkpoint, "simmim.pth", FORMATS)
    assert found.keys() == ours.state_dict().keys()
    weights.match(ours, found, 1.0, "simmim.pth")
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images))
    assert "encoder.rel_pos_bias.relative_position_bias_table" in checkpoint["model"]  # which is left as it was


def test_a_shared_table_adds_to_the_blocks_own():
    theirs = beit(use_shared_rel_pos_bias=True)
    ours, images = beit(9), torch.rand(2, 3, 16, 16)
    weights.match(ours, weights.recognise({"module": theirs.state_dict()}, "w.pth", FORMATS)[1], 1.0, "w.pth")
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_what_pretraining_adds_to_a_beit_is_left_out():
    more = {"lm_head.weight": (9, 24), "mask_token": (1, 1, 24), "blocks.0.attn.relative_position_index": (5, 5)}
    checkpoint = {"model": state(beit()) | {name: torch.rand(size) for name, size in more.items()}}
    assert weights.recognise(checkpoint, "beit.pth", FORMATS)[1].keys() == beit().state_dict().keys()
    assert BeitFormat().licence(checkpoint) == "MIT"


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        ("mae with decoder", weights.IMAGENET),
        ("urfm", weights.IMAGENET),
        ("dino", weights.IMAGENET),
        ("mocov3", weights.IMAGENET),
        ("mocov3 resnet", weights.IMAGENET),
        ("simclrv2", ((0, 0, 0), (1, 1, 1))),
        ("beit", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("usfm", weights.IMAGENET),
        ("simmim", weights.IMAGENET),
    ],
)
def test_images_are_normalised_as_the_format_is_known_for(tmp_path, name, statistics):
    torch.save(CHECKPOINTS[name][1](), tmp_path / "w.pth")
    assert weights.normalisation(tmp_path / "w.pth", FORMATS) == statistics


def test_a_fine_tuned_mae_starts_all_but_the_norm_that_it_does_not_have(tmp_path):
    tuned = vit(global_pool="avg", fc_norm=True)
    args = argparse.Namespace(model="vit_base_patch16", smoothing=0.1)
    torch.save({"model": state(tuned, head__weight=(5, 24)), "args": args}, tmp_path / "tuned.pth")
    encoder = VisionTransformer(width=24, depth=2, heads=2, image_size=16, patch=8, init=tmp_path / "tuned.pth")
    lines = encoder.initialize(FORMATS)
    assert lines[0].endswith("28 of 30 tensors loaded")
    assert lines[-1].startswith("norm begins anew")
    assert encoder.network.norm.weight.unique().tolist() == [1.0]
    assert encoder.lineage()[0]["licence"] is None  # a fine-tuned one does not tell whose it is


def test_a_checkpoint_that_mae_left_without_its_decoder_is_known_by_its_arguments():
    args = argparse.Namespace(norm_pix_loss=False)
    assert VisionTransformerFormat().licence({"model": state(vit()), "args": args}) == "CC-BY-NC 4.0"


def test_a_resnet_for_a_transformer_is_refused_with_the_encoder_to_write(tmp_path):
    torch.save(moco(resnet()), tmp_path / "r50.pth.tar")
    encoder = VisionTransformer(width=24, depth=2, heads=2, image_size=16, patch=8, init=tmp_path / "r50.pth.tar")
    with pytest.raises(
        ValueError, match=r"holds a ResNet, this is a ViT: write encoder: {name: timm, model: resnet50}"
    ):
        encoder.initialize(FORMATS)
