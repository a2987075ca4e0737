"""Weight files: read safely, recognised, matched, named by digest."""

import argparse
import hashlib
import json
import re
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ussl import checkpoint, weights
from ussl_plugins.initializations.vision_transformer import VisionTransformerFormat

MARKS = ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.qkv.weight")
FORMATS = {"vision_transformer": VisionTransformerFormat}


class Trap:
    """What an attacker pickles: unpickling it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def state():
    return {name: torch.full((2, 2), float(i)) for i, name in enumerate(MARKS)}


def test_a_checkpoint_holding_code_is_refused(tmp_path):
    torch.save({"model": state(), "args": Trap(tmp_path / "trapped")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.pth holds pickled code, which is not run: .*safetensors$"):
        weights.read(tmp_path / "w.pth")
    assert not (tmp_path / "trapped").exists()


def test_a_pickled_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds pickled code"):
        weights.read(tmp_path / "w.pth")


def test_a_checkpoint_that_holds_its_arguments_is_read(tmp_path):
    torch.save({"model": state(), "args": argparse.Namespace(lr=1e-3)}, tmp_path / "mae.pth")
    checkpoint = weights.read(tmp_path / "mae.pth")
    assert torch.equal(checkpoint["model"]["cls_token"], state()["cls_token"])
    assert checkpoint["args"].lr == 1e-3


def test_a_path_among_the_arguments_is_read(tmp_path):
    torch.save({"model": state(), "args": argparse.Namespace(output_dir=tmp_path)}, tmp_path / "mae.pth")
    assert weights.read(tmp_path / "mae.pth")["args"].output_dir == tmp_path


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_left_on_the_disk_are_the_same(tmp_path, zipped):
    torch.save(state(), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = weights.read(tmp_path / "w.pth", mapped=True)
    assert weights.state_digest(found) == weights.state_digest(state())


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_safetensors_are_known_by_name_or_by_content(tmp_path, name):
    save_file(state(), tmp_path / name)
    assert torch.equal(weights.read(tmp_path / name)["cls_token"], state()["cls_token"])


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "old.pth"])
def test_a_file_cut_short_is_refused_in_one_line(tmp_path, name):
    if name == "w.safetensors":
        save_file(state(), tmp_path / name)
    else:
        torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=name == "w.pth")
    whole = (tmp_path / name).read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 9):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"(?s)is not a .*download or copy it again$") as refused:
            weights.read(tmp_path / name)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x89PNG\r\n", np.arange(99).tobytes()])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match="is not a "):
        weights.read(tmp_path / "w.pth")


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no weight file"):
        weights.read(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"holds no weights: a run or encoder folder has encoder/model.safetensors"):
        weights.read(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a dictionary"):
        weights.read(tmp_path / "list.pth")


def test_a_run_folder_means_the_weights_in_it(tmp_path):
    (tmp_path / "encoder").mkdir()
    save_file(state(), tmp_path / "encoder" / "model.safetensors")
    assert weights.locate(tmp_path) == tmp_path / "encoder" / "model.safetensors"
    assert weights.read(tmp_path).keys() == weights.read(tmp_path / "encoder").keys() == state().keys()


def test_a_checkpoint_of_a_run_is_refused_with_the_folder_to_give_instead(tmp_path):
    run = tmp_path / "run"
    state = {"step": 7, "recipe": {}, "method": {}, "optimizer": {}}
    name = checkpoint.save(run / "checkpoints", 7, state, 1)
    for given in (name, run / "checkpoints"):
        with pytest.raises(
            ValueError, match=rf"what a run resumes from, not an encoder: give the run's folder {re.escape(str(run))}$"
        ):
            weights.read(given)
    copy = name.rename(tmp_path / "copy.pt")
    with pytest.raises(ValueError, match=r"copy.pt is what a run .*: give the run's folder$"):
        weights.read(copy)


def test_a_digest_is_the_sha256_of_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"ultrasound" * 300_000)
    assert weights.digest(tmp_path / "file") == hashlib.sha256(b"ultrasound" * 300_000).hexdigest()


def test_a_digest_of_a_state_knows_content_and_not_order():
    a, b = torch.rand(3, 4), torch.tensor(5.0)
    said = weights.state_digest({"a": a, "b": b})
    assert weights.state_digest({"b": b, "a": a.t().contiguous().t()}) == said
    changed = a.clone()
    changed[2, 3] += 1e-6
    others = [{"a": changed, "b": b}, {"a": a.reshape(4, 3), "b": b}, {"c": a, "b": b}, {"a": a.double(), "b": b}]
    assert said not in [weights.state_digest(other) for other in others]
    assert len(weights.state_digest({"half": a.bfloat16()})) == 64


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
@pytest.mark.parametrize("container", [None, "model", "state_dict", "ema_state_dict"])
def test_a_vision_transformer_is_recognised_in_any_wrapping(prefix, container):
    held = {prefix + name: tensor for name, tensor in state().items()}
    checkpoint = held if container is None else {"epoch": 3, container: held}
    name, found = weights.recognise(checkpoint, "w.pth", FORMATS)
    assert name == "vision_transformer"
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


def test_averaged_weights_are_preferred():
    averaged = {name: tensor + 1 for name, tensor in state().items()}
    checkpoint = {"model": "mae_vit_base_patch16", "state_dict": state(), "ema_state_dict": averaged}
    _, found = weights.recognise(checkpoint, "w.pth", FORMATS)
    assert torch.equal(found["cls_token"], averaged["cls_token"])


def test_decoder_and_head_are_left_out():
    more = ("decoder_pos_embed", "decoder_blocks.0.norm1.weight", "mask_token", "head.weight", "norm.weight")
    checkpoint = {"model": {**state(), **{name: torch.zeros(1) for name in more}}}
    _, found = weights.recognise(checkpoint, "w.pth", FORMATS)
    assert found.keys() == {*MARKS, "norm.weight"}


def test_an_unknown_format_is_refused_with_its_keys():
    with pytest.raises(ValueError, match=r"w.pth is of no known format \(vision_transformer\); its keys are conv1"):
        weights.recognise({"conv1": torch.zeros(1)}, "w.pth", FORMATS)


def test_an_unknown_format_is_refused_with_the_keys_inside_it():
    nested = {"epoch": 3, "checkpoint": {"trunk.a": torch.zeros(1), "trunk.b": torch.zeros(1), "c": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"keys are epoch, checkpoint \(trunk.a, trunk.b and 1 more\): save the enc"):
        weights.recognise(nested, "w.pth", FORMATS)


def test_what_a_format_cannot_use_is_refused_with_the_name_of_the_file():
    class Refusing(VisionTransformerFormat):
        def state(self, checkpoint):
            raise ValueError("too wide")

    with pytest.raises(ValueError, match=r"^w.pth: too wide$"):
        weights.recognise(state(), "w.pth", {"refusing": Refusing})


def test_a_folder_of_timms_is_taken_as_it_is_where_no_format_knows_it(tmp_path):
    save_file({"stem.0.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "convnext_tiny"}')
    name, found = weights.recognise(weights.read(tmp_path), str(tmp_path), FORMATS)
    assert (name, found.keys()) == ("timm", {"stem.0.weight"})


@pytest.mark.parametrize(
    ("checkpoint", "found"),
    [
        ({"a.b": 1, "c": 2}, {"a.b": 1, "c": 2}),
        ({"module.model.a.b": 1, "module.model.c": 2, "module.d": 3}, {"a.b": 1, "c": 2}),
        ({"epoch": 9, "model": {"a.b": 1}}, {"a.b": 1}),
        ({"model": "name", "state_dict": {"encoder.a.b": 1}}, {"a.b": 1}),
        ({"model": {"a.b": 1}, "ema_state_dict": {"a.b": 2}}, {"a.b": 2}),
        ({"model": {"a.b": 1}, "ema_state_dict": {"decay": 2}}, {"a.b": 1}),
        ({"momentum_encoder.a.b": 1}, {}),
        ({"decoder_a.b": 1}, {}),
        ({3: 1, "other": 2}, {}),
    ],
)
def test_an_encoder_is_taken_out_of_what_holds_it(checkpoint, found):
    assert weights.unwrapped(checkpoint, "a.b") == found


def test_a_checkpoint_of_two_formats_is_refused():
    with pytest.raises(ValueError, match="recognised by a and b: turn one off with USSL_DISABLE_PLUGINS"):
        weights.recognise(state(), "w.pth", {"b": VisionTransformerFormat, "a": VisionTransformerFormat})


def test_formats_come_from_the_plugins():
    assert weights.recognise(state(), "w.pth")[0] == "vision_transformer"


def test_what_fits_is_copied_and_the_rest_reported():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    before = module[1].bias.clone()
    given = {
        "0.weight": torch.ones(2, 2).half(),
        "0.bias": torch.ones(2),
        "1.weight": torch.ones(5, 2),
        "x": torch.ones(1),
    }
    report = weights.match(module, given, 0.5, "w.pth")
    assert torch.equal(module[0].weight, torch.ones(2, 2))
    assert torch.equal(module[1].bias, before)
    assert (report.fraction, report.matched, report.missing) == (0.5, ["0.weight", "0.bias"], ["1.bias"])
    assert report.lines() == [
        "weights w.pth: 2 of 4 tensors loaded",
        "missing: 1.bias",
        "of another shape, not loaded: 1.weight ((5, 2) in the file, (3, 2) here)",
        "unexpected, not used: x",
    ]


def test_too_little_that_fits_is_refused_and_changes_nothing():
    module = nn.Linear(2, 2)
    before = weights.state_digest(module.state_dict())
    with pytest.raises(ValueError, match=r"only 1 of 2 tensors match, below init_matched 0.9; missing: bias; unexpec"):
        weights.match(module, {"weight": torch.ones(2, 2), "other": torch.ones(1)}, 0.9, "w.pth")
    assert weights.state_digest(module.state_dict()) == before


def test_a_resnet_for_a_transformer_is_refused_with_the_encoder_to_write():
    resnet = {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1), "layer1.0.conv3.weight": state}
    resnet |= {f"layer3.{i}.conv1.weight": torch.ones(1) for i in range(23)}
    vit = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(1, 1)})})])})
    with pytest.raises(
        ValueError, match=r"holds a ResNet, this is a ViT: write encoder: {name: timm, model: resnet101"
    ):
        weights.match(vit, resnet, 0.9, "w.pth")
    with pytest.raises(ValueError, match=r"holds a ViT, this is a ResNet: write encoder: {name: vit}; missing: "):
        weights.match(
            nn.ModuleDict({"layer1": nn.ModuleList([nn.ModuleDict({"conv1": nn.Linear(1, 1)})])}),
            vit.state_dict(),
            0.9,
            "w.pth",
        )


@pytest.mark.parametrize(("theirs", "ours"), [("norm", "fc_norm"), ("fc_norm", "norm")])
def test_a_final_norm_that_stands_elsewhere_is_said_to_begin_anew(theirs, ours):
    module = nn.ModuleDict({ours: nn.LayerNorm(2), "body": nn.Linear(2, 2)})
    given = {f"{theirs}.weight": torch.ones(2), f"{theirs}.bias": torch.ones(2)}
    given |= {f"body.{name}": tensor for name, tensor in module["body"].state_dict().items()}
    lines = weights.match(module, given, 0.5, "w.pth").lines()
    assert lines[-1].startswith(f"{ours} begins anew: ")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and no network."""

    class Unreachable:
        def head(self, *args, **kwargs):
            raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Unreachable)
    return tmp_path


def test_an_unreachable_hub_is_one_line_within_seconds_on_what_to_download(hub):
    started = time.monotonic()
    with pytest.raises(ValueError, match="cannot fetch model") as refused:
        weights.from_hub("timm/vit_tiny", "model.safetensors", "encoder.init")
    assert time.monotonic() - started < 5
    said = str(refused.value)
    assert "https://huggingface.co/timm/vit_tiny (" in said
    assert said.endswith("download it on a machine that can and set encoder.init to that file")
    assert "\n" not in said


def test_a_file_that_was_downloaded_before_needs_no_hub(hub):
    folder = hub / "models--timm--vit_tiny"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert weights.from_hub("timm/vit_tiny", "model.safetensors", "encoder.init") == file


def test_timm_weights_that_are_not_on_the_hub_are_refused():
    with pytest.raises(ValueError, match="timm has no pretrained weights 'vit_large_patch14_224' on the hub"):
        weights.timm_model("vit_large_patch14_224", "encoder.init")


class Known(VisionTransformerFormat):
    """A format whose weights have a licence and a normalisation."""

    def licence(self, checkpoint):
        return "CC-BY-NC 4.0"

    def statistics(self, checkpoint):
        return (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def test_weights_have_the_licence_and_the_normalisation_of_their_format(tmp_path):
    torch.save(state(), tmp_path / "w.pth")
    digest = weights.digest(tmp_path / "w.pth")
    entry = {"name": str(tmp_path / "w.pth"), "source": str(tmp_path / "w.pth"), "sha256": digest}
    assert weights.lineage(tmp_path / "w.pth", {"known": Known}) == [{**entry, "licence": "CC-BY-NC 4.0"}]
    assert weights.lineage(tmp_path / "w.pth", FORMATS) == [{**entry, "licence": None}]
    assert weights.normalisation(tmp_path / "w.pth", {"known": Known}) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert weights.normalisation(tmp_path / "w.pth", FORMATS) == weights.IMAGENET


def test_what_lies_beside_weights_is_believed_before_their_format(tmp_path):
    torch.save(state(), tmp_path / "w.pth")
    said = {"license": "mit", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
    assert weights.lineage(tmp_path / "w.pth", {"known": Known})[0]["licence"] == "mit"
    assert weights.normalisation(tmp_path / "w.pth", {"known": Known}) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_weights_of_no_format_or_of_two_have_no_licence(tmp_path):
    torch.save(state(), tmp_path / "w.pth")
    for formats in ({}, {"a": Known, "b": Known}):
        assert weights.lineage(tmp_path / "w.pth", formats)[0]["licence"] is None
        assert weights.normalisation(tmp_path / "w.pth", formats) == weights.IMAGENET


def test_a_file_is_looked_into_once_until_it_changes(tmp_path, monkeypatch):
    read, seen = weights.read, []
    monkeypatch.setattr(weights, "read", lambda path, mapped=False: seen.append(path) or read(path, mapped))
    torch.save(state(), tmp_path / "w.pth")
    for _ in range(3):
        weights.lineage(tmp_path / "w.pth", {"known": Known})
        weights.normalisation(tmp_path / "w.pth", {"known": Known})
    assert len(seen) == 1
    torch.save({"something": torch.ones(9)}, tmp_path / "w.pth")
    assert weights.normalisation(tmp_path / "w.pth", {"known": Known}) == weights.IMAGENET
    assert len(seen) == 2


def test_what_was_trained_from_weights_inherits_their_licence(tmp_path):
    mae = {"name": "mae.pth", "source": "mae.pth", "sha256": "0" * 64, "licence": "CC-BY-NC 4.0"}
    teacher = {"name": "teacher", "source": "hub", "sha256": "1" * 64, "licence": "MIT"}
    encoder = tmp_path / "run" / "encoder"
    encoder.mkdir(parents=True)
    save_file(state(), encoder / "model.safetensors")
    (encoder / "config.json").write_text(json.dumps({"ussl": {"weights": [mae, teacher, mae]}}))
    for init in (tmp_path / "run", encoder, encoder / "model.safetensors"):
        own, *ancestors = weights.lineage(init, {"known": Known})
        assert own["sha256"] == weights.digest(encoder / "model.safetensors")
        assert own["licence"] is None  # that of its ancestors
        assert ancestors == [mae, teacher]


def test_the_lineage_of_a_timm_name_is_one_entry(hub):
    (entry,) = weights.lineage("vit_base_patch16_224.mae")
    assert entry["licence"] == "cc-by-nc-4.0"
    assert entry["source"] == "https://huggingface.co/timm/vit_base_patch16_224.mae"
