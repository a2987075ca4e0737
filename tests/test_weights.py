"""Weight files: read safely, recognised, matched, named by digest."""

import argparse
import hashlib
import time

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ussl import weights
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
