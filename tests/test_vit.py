"""The vision transformer against plain loops and timm's own network."""

import math

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as Plain

from ussl import weights
from ussl.export import write_encoder
from ussl.parts import Encoder, Mask, Student, View
from ussl.positions import resized_by_dino, sincos
from ussl.testing import check_encoder
from ussl_plugins.encoders.vit import VisionTransformer


def small(**options):
    torch.manual_seed(0)
    shape = {"size": "tiny", "width": 24, "depth": 3, "heads": 2, "image_size": 32, "patch": 8}
    return VisionTransformer(**{**shape, **options})


def plain(encoder, **options):
    """timm's network of the same shape, with the encoder's weights."""
    side, patch = encoder.image_size, encoder.patch
    shape = {"embed_dim": encoder.width, "depth": encoder.depth, "num_heads": encoder.heads}
    network = Plain(img_size=side, patch_size=patch, num_classes=0, **shape, **options)
    network.load_state_dict(encoder.to_timm()[0])
    return network.eval()


def normalised(images, encoder):
    mean, std = (torch.tensor(x)[:, None, None] for x in (encoder.mean, encoder.std))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def random_mask(images, masks, patches, seen, how="drop", image=None):
    order = torch.rand(images, masks, patches).argsort(-1)
    hidden = torch.ones(images, masks, patches, dtype=torch.bool).scatter(2, order[..., :seen], False)
    return Mask(hidden, hidden[:, :, None], seen, patches - seen, how, image)


def test_positions_are_the_sines_and_cosines_of_mae():
    width, rows, columns = 16, 2, 3
    table = sincos(width, rows, columns)
    assert table.shape == (7, 16)
    assert table.dtype == torch.float32
    assert table[0].abs().max() == 0
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[1 + row * columns + column].tolist() == pytest.approx(expected, abs=1e-7)
    assert torch.equal(sincos(width, rows, columns, cls=False), table[1:])


def test_positions_need_a_width_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4, not 30: try 28"):
        sincos(30, 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pooling", ["token", "average"])
def test_a_whole_image_gives_the_tokens_of_timm(channels, pooling):
    encoder, images = small(pooling=pooling).eval(), torch.rand(2, channels, 32, 32)
    tokens = encoder(images)
    expected = plain(encoder).forward_features(normalised(images, encoder))
    torch.testing.assert_close(tokens.patches[:, 0], expected[:, 1:], atol=1e-6, rtol=1e-5)
    pooled = expected[:, 0] if pooling == "token" else expected[:, 1:].mean(1)
    torch.testing.assert_close(tokens.pooled[:, 0], pooled, atol=1e-6, rtol=1e-5)
    assert tokens.where is None
    assert tokens.grid == (4, 4)


def test_a_masked_image_gives_the_tokens_of_embedding_all_and_keeping_the_seen():
    encoder, images = small().eval(), torch.rand(2, 3, 32, 32)
    mask = random_mask(2, 2, 16, seen=5)
    tokens, network = encoder(images, mask), plain(encoder)
    embedded = network.patch_embed(normalised(images, encoder)) + network.pos_embed[:, 1:]
    first = network.cls_token[0] + network.pos_embed[0, :1]
    for b in range(2):
        for k in range(2):
            seen = [n for n in range(16) if not mask.hidden[b, k, n]]
            x = torch.cat([first, embedded[b, seen]])[None]
            for block in network.blocks:
                x = block(x)
            x = network.norm(x)[0]
            assert tokens.where[b, k].tolist() == seen
            torch.testing.assert_close(tokens.pooled[b, k], x[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(tokens.patches[b, k], x[1:], atol=1e-6, rtol=1e-5)


def test_a_hidden_pixel_changes_nothing():
    encoder, images = small().eval(), torch.rand(2, 1, 32, 32)
    mask = random_mask(2, 1, 16, seen=4)
    cells = mask.hidden.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(cells, torch.rand(2, 1, 32, 32), images)
    assert torch.equal(encoder(images, mask).patches, encoder(other, mask).patches)
    assert not torch.equal(encoder(images).patches, encoder(other).patches)


def test_a_mask_that_changed_the_pixels_is_encoded_whole():
    encoder, images = small().eval(), torch.rand(2, 1, 32, 32)
    changed = torch.rand(2, 3, 1, 32, 32)
    tokens = encoder(images, random_mask(2, 3, 16, seen=4, how="fill", image=changed))
    assert tokens.where is None
    for k in range(3):
        alone = encoder(changed[:, k])
        torch.testing.assert_close(tokens.patches[:, k], alone.patches[:, 0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(tokens.pooled[:, k], alone.pooled[:, 0], atol=1e-6, rtol=1e-5)


def test_a_mask_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"'token': it takes \['drop', 'fill'\]"):
        small()(torch.rand(1, 1, 32, 32), random_mask(1, 1, 16, 4, how="token"))


@pytest.mark.parametrize("size", [(48, 16), (24, 64), (16, 16), (64, 16)])
def test_another_image_size_gives_the_tokens_of_timms_dynamic_size(size):
    encoder, images = small().eval(), torch.rand(1, 3, *size)
    expected = plain(encoder, dynamic_img_size=True).forward_features(normalised(images, encoder))
    torch.testing.assert_close(encoder(images).patches[:, 0], expected[:, 1:], atol=1e-6, rtol=1e-5)


def test_an_image_that_patches_do_not_fill_is_refused_with_a_size_that_they_do():
    with pytest.raises(ValueError, match="30 x 33 does not divide into patches of 8: use 32 x 32"):
        small()(torch.rand(1, 1, 30, 33))
    with pytest.raises(ValueError, match="use 70 x 70"):
        VisionTransformer(size="tiny", patch=14, image_size=64)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputing_activations_changes_no_gradient(drop_path):
    encoder, images = small(drop_path=drop_path), torch.rand(4, 1, 32, 32)
    mask, found = random_mask(4, 1, 16, seen=8), []
    for recompute in (False, True):
        encoder.recompute = recompute
        encoder.zero_grad()
        torch.manual_seed(7)
        encoder(images, mask).patches.square().sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_recomputing_activations_keeps_fewer_of_them():
    encoder, images, kept = small(), torch.rand(4, 1, 32, 32), []
    for encoder.recompute in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept[-1].append(x.numel()) or x, lambda x: x):
            kept.append([])
            encoder(images)
    assert sum(kept[1]) < sum(kept[0]) / 3


@pytest.mark.parametrize("pooling", ["token", "average"])
def test_every_parameter_but_the_positions_is_trained(pooling):
    encoder = small(pooling=pooling)
    encoder(torch.rand(2, 1, 32, 32), random_mask(2, 1, 16, 4)).pooled.square().sum().backward()
    fixed = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert fixed == ["network.pos_embed"]
    assert idle == []


def test_paths_are_dropped_more_often_towards_the_end():
    blocks = small(depth=5, drop_path=0.4).network.blocks
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_weights_begin_as_those_of_mae():
    network = small(width=96).network
    matrices = {name: p for name, p in network.named_parameters() if p.ndim > 1 and "blocks" in name}
    matrices["patches"] = network.patch_embed.proj.weight.flatten(1)
    for matrix in matrices.values():
        bound = math.sqrt(6 / sum(matrix.shape))  # of a uniform distribution: standard deviation bound / sqrt(3)
        assert matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert all(p.abs().max() == 0 for name, p in network.named_parameters() if name.endswith("bias"))
    assert all(torch.equal(p, torch.ones_like(p)) for n, p in network.named_parameters() if "norm" in n and "wei" in n)
    assert network.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(network.pos_embed[0], sincos(96, 4, 4))
    assert network.norm.eps == network.blocks[0].norm1.eps == 1e-6


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ("tiny", (192, 12, 3)),
        ("small", (384, 12, 6)),
        ("base", (768, 12, 12)),
        ("large", (1024, 24, 16)),
        ("huge", (1280, 32, 16)),
    ],
)
def test_sizes_have_their_usual_shapes(size, shape):
    with torch.device("meta"):  # without memory
        encoder = VisionTransformer(size=size)
    heads = encoder.network.blocks[0].attn.num_heads
    assert (encoder.width, len(encoder.network.blocks), heads) == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 25}, "does not divide into 2 heads"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"init_matched": 0.0}, "init_matched must be in"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"size": "gigantic"}, "size is tiny or small"),
        ({"pooling": "max"}, "pooling token or average"),
        ({"scheme": "swav"}, "scheme is mae or mocov3 or dino, not swav"),
        ({"init": "no/such/file.pth"}, "no weight file and no pretrained timm model is called 'no/such/file.pth'"),
        ({"init": "vit_base_patch16_224.mea"}, r"did you mean vit_base_patch16_224\."),
    ],
)
def test_options_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_an_image_of_two_channels_is_refused():
    with pytest.raises(ValueError, match="grey or RGB"):
        small()(torch.rand(1, 2, 32, 32))


def test_weights_of_a_file_start_the_network_with_their_positions_resized(tmp_path):
    source = small(image_size=64)
    state = {f"module.encoder.{name}": tensor for name, tensor in source.network.state_dict().items()}
    torch.save({"model": "mae_vit", "state_dict": {}, "ema_state_dict": state}, tmp_path / "urfm.pth")
    torch.manual_seed(1)
    encoder = VisionTransformer(
        size="tiny", width=24, depth=3, heads=2, image_size=32, patch=8, init=tmp_path / "urfm.pth"
    )
    lines = encoder.initialize()
    assert lines == [f"weights {tmp_path / 'urfm.pth'}: 42 of 42 tensors loaded"]
    theirs = timm.layers.resample_abs_pos_embed(source.network.pos_embed, new_size=[4, 4], old_size=[8, 8])
    assert torch.equal(encoder.network.pos_embed, theirs)
    assert not encoder.network.pos_embed.requires_grad
    images = torch.rand(1, 1, 64, 64)
    assert torch.equal(encoder.network.blocks[2].mlp.fc2.weight, source.network.blocks[2].mlp.fc2.weight)
    assert encoder(images).patches.shape == source(images).patches.shape
    sha256 = weights.digest(tmp_path / "urfm.pth")
    assert encoder.lineage()[0]["sha256"] == sha256


def test_positions_without_one_for_cls_are_taken_with_none(tmp_path):
    state = small().network.state_dict()
    state["pos_embed"] = state["pos_embed"][:, 1:] + 1
    torch.save(state, tmp_path / "w.pth")
    encoder = small(init=tmp_path / "w.pth")
    encoder.initialize()
    assert torch.equal(encoder.network.pos_embed[0, 1:], sincos(24, 4, 4, cls=False) + 1)
    assert encoder.network.pos_embed[0, 0].abs().max() == 0


def test_weights_that_hardly_fit_are_refused_by_name_and_change_nothing(tmp_path):
    torch.save(small(width=48).network.state_dict(), tmp_path / "wide.pth")
    encoder = small(init=tmp_path / "wide.pth")
    before = weights.state_digest(encoder.state_dict())
    with pytest.raises(ValueError, match=r"wide.pth does not fit .* 0 of 42 .*\(1, 1, 48\) in the file, \(1, 1, 24\)"):
        encoder.initialize()
    assert weights.state_digest(encoder.state_dict()) == before


def test_weights_of_another_kind_of_transformer_are_refused(tmp_path):
    scaled = Plain(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=0, init_values=0.1)
    torch.save(scaled.state_dict(), tmp_path / "scaled.pth")
    with pytest.raises(ValueError, match=r"has layers that vit lacks \(blocks.0.ls1.gamma"):
        small(init=tmp_path / "scaled.pth").initialize()


def test_what_does_not_fit_is_reported(tmp_path):
    state = small(depth=4).network.state_dict()
    del state["norm.bias"]
    torch.save(state, tmp_path / "w.pth")
    lines = small(init=tmp_path / "w.pth").initialize()
    assert "41 of 42" in lines[0]
    assert lines[1] == "missing: norm.bias"
    assert lines[2].startswith("unexpected, not used: blocks.3.")


def test_images_are_normalised_as_the_weights_were_trained(tmp_path):
    assert small(init="vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert small(init="vit_base_patch16_224.mae").mean == (0.485, 0.456, 0.406)
    assert small(init="vit_tiny_patch16_224", mean=(0.1, 0.2, 0.3)).mean == (0.1, 0.2, 0.3)
    torch.save({}, tmp_path / "w.pth")
    assert small(init=tmp_path / "w.pth").std == (0.229, 0.224, 0.225)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}}')
    assert small(init=tmp_path / "w.pth").std == (0.2, 0.2, 0.2)
    encoder, images = small(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)).eval(), torch.rand(1, 1, 32, 32)
    expected = plain(encoder).forward_features(normalised(images, encoder))
    torch.testing.assert_close(encoder(images).patches[:, 0], expected[:, 1:], atol=1e-6, rtol=1e-5)


def test_a_timm_name_starts_the_network_with_timms_weights(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    theirs = timm.create_model("vit_tiny_patch16_224")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(weights, "from_hub", lambda *a: asked.append(a) or tmp_path / "model.safetensors")
    encoder = VisionTransformer(size="tiny", init="vit_tiny_patch16_224.augreg_in21k")
    assert "150 of 150" in encoder.initialize()[0]
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors", "encoder.init")]
    assert torch.equal(encoder.network.pos_embed, theirs.pos_embed)
    assert encoder.lineage()[0]["licence"] == "apache-2.0"


def test_a_mask_of_tokens_is_refused_without_a_mask_token_and_any_other_with_one():
    images, encoder = torch.rand(1, 1, 32, 32), small(mask_token=True)
    for how in ("drop", "fill"):
        mask = random_mask(1, 1, 16, 4, how, images[:, None])
        with pytest.raises(ValueError, match=rf"'{how}': it takes \['token'\]"):
            encoder(images, mask)
    assert small().accepts == {"drop", "fill"}


@pytest.mark.parametrize("scheme", ["mae", "dino"])
def test_a_mask_token_stands_where_patches_are_hidden_before_positions_are_added(scheme):
    encoder, images = small(scheme=scheme, mask_token=True).eval(), torch.rand(2, 1, 32, 32)
    mask, network = random_mask(2, 3, 16, seen=5, how="token"), plain(encoder)
    tokens = encoder(images, mask)
    assert tokens.where is None
    assert tokens.patches.shape == (2, 3, 16, 24)
    embedded = network.patch_embed(normalised(images, encoder))
    for b in range(2):
        for k in range(3):
            rows = [encoder.mask_token[0, 0] if mask.hidden[b, k, n] else embedded[b, n] for n in range(16)]
            x = torch.stack([network.cls_token[0, 0], *rows])[None] + network.pos_embed
            for block in network.blocks:
                x = block(x)
            x = network.norm(x)[0]
            torch.testing.assert_close(tokens.pooled[b, k], x[0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(tokens.patches[b, k], x[1:], atol=1e-6, rtol=1e-5)


def test_a_hidden_pixel_under_a_mask_token_changes_nothing():
    encoder, images = small(mask_token=True).eval(), torch.rand(2, 1, 32, 32)
    mask = random_mask(2, 1, 16, seen=4, how="token")
    cells = mask.hidden.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(cells, torch.rand(2, 1, 32, 32), images)
    assert torch.equal(encoder(images, mask).patches, encoder(other, mask).patches)
    assert not torch.equal(encoder(images).patches, encoder(other).patches)


def test_a_mask_token_is_trained_by_whole_images_too_and_is_no_part_of_the_export(tmp_path):
    encoder, images = small(mask_token=True), torch.rand(2, 1, 32, 32)
    encoder.eval()(images).patches.square().sum().backward()
    assert encoder.mask_token.grad.abs().max() == 0
    assert "mask_token" in encoder.state_dict()
    write_encoder(encoder, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    expected = network(normalised(images, encoder))
    torch.testing.assert_close(encoder(images).pooled[:, 0], expected, atol=1e-6, rtol=1e-5)


def test_a_mask_token_begins_as_a_truncated_normal():
    token = small(mask_token=True, width=512, depth=1).mask_token
    assert token.shape == (1, 1, 512)
    assert token.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("scheme", ["mae", "mocov3", "dino"])
@pytest.mark.parametrize("mask_token", [False, True])
def test_every_scheme_keeps_the_contract_of_encoders(scheme, mask_token):
    check_encoder(small(scheme=scheme, mask_token=mask_token, freeze_patches=scheme == "mocov3"))


def test_weights_of_mocov3_are_uniform_with_queries_keys_and_values_apart():
    network = small(width=96, scheme="mocov3").network
    matrices = {n: p for n, p in network.named_parameters() if p.ndim == 2}
    matrices["patches"] = network.patch_embed.proj.weight.flatten(1)
    for name, matrix in matrices.items():
        sides = (96, 96) if "qkv" in name else matrix.shape
        bound = math.sqrt(6 / sum(sides))
        assert bound * 0.99 < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert matrices["patches"].shape == (96, 3 * 8 * 8)
    assert all(p.abs().max() == 0 for name, p in network.named_parameters() if name.endswith("bias"))
    assert 0 < network.cls_token.abs().max() < 5e-6


def test_positions_of_mocov3_are_those_of_mae_with_rows_first():
    network = small(width=16, scheme="mocov3").network
    assert not network.pos_embed.requires_grad
    assert network.pos_embed[0, 0].abs().max() == 0
    for row in range(4):
        for column in range(4):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert network.pos_embed[0, 1 + row * 4 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_of_dino_are_truncated_normals_with_trained_positions():
    network = small(width=96, scheme="dino").network
    drawn = {n: p for n, p in network.named_parameters() if p.ndim == 2 or n in ("cls_token", "pos_embed")}
    assert len(drawn) == 4 * 3 + 2
    for name, p in drawn.items():
        assert p.std().item() == pytest.approx(0.02, rel=0.3 if name == "cls_token" else 0.05)
        assert p.requires_grad
    bound = 1 / math.sqrt(3 * 8 * 8)  # of the uniform distribution with which torch begins a convolution
    for p in network.patch_embed.proj.parameters():
        assert 0.9 * bound < p.abs().max() <= bound
    vectors = {n: p for n, p in network.named_parameters() if p.ndim == 1 and "patch_embed" not in n}
    for name, p in vectors.items():
        assert torch.equal(p, torch.full_like(p, float("norm" in name and name.endswith("weight"))))


def test_positions_of_dino_learn_at_every_size():
    for side in (32, 16):
        encoder = small(scheme="dino")
        encoder(torch.rand(2, 1, side, side)).pooled.square().sum().backward()
        assert encoder.network.pos_embed.grad.abs().min(-1).values.gt(0).all()


def cubic(t):
    """Keys's kernel with the parameter -0.75 of bicubic interpolation in deep-learning libraries."""
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def interpolated(square, place, factor):
    """The value of a square (side, side) under an output pixel, by factors of the two axes; edges are repeated."""
    side, total = len(square), 0.0
    row, column = ((x + 0.5) / f - 0.5 for x, f in zip(place, factor, strict=True))
    for i in range(math.floor(row) - 1, math.floor(row) + 3):
        for j in range(math.floor(column) - 1, math.floor(column) + 3):
            value = square[min(max(i, 0), side - 1)][min(max(j, 0), side - 1)]
            total += cubic(row - i) * cubic(column - j) * value
    return total


@pytest.mark.parametrize("grid", [(6, 6), (2, 2), (3, 5), (8, 2), (2, 8)])
def test_positions_of_dino_are_interpolated_by_a_tenth_of_a_patch_more(grid):
    torch.manual_seed(1)
    positions = torch.randn(1, 1 + 16, 3, dtype=torch.float64)
    found = resized_by_dino(positions, grid)
    assert found.shape == (1, 1 + grid[0] * grid[1], 3)
    assert torch.equal(found[:, 0], positions[:, 0])
    factor = [(count + 0.1) / 4 for count in grid]
    for channel in range(3):
        square = positions[0, 1:, channel].reshape(4, 4).tolist()
        expected = [interpolated(square, (i, j), factor) for i in range(grid[0]) for j in range(grid[1])]
        assert found[0, 1:, channel].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("side", [96, 224, 384])
def test_the_usual_crops_of_dino_have_as_many_positions_as_patches(side):
    positions = torch.randn(1, 197, 4)
    found = resized_by_dino(positions, (side // 16, side // 16))
    assert found.shape[1] == 1 + (side // 16) ** 2
    assert torch.equal(found, positions) == (side == 224)


def test_the_encoder_of_dino_interpolates_as_dino_does_and_that_of_mae_as_timm():
    images, crop = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 16, 24)
    encoder = small(scheme="dino").eval()
    network = plain(encoder)
    expected = network.forward_features(normalised(images, encoder))
    torch.testing.assert_close(encoder(images).pooled[:, 0], expected[:, 0], atol=1e-6, rtol=1e-5)
    cls, square = network.pos_embed[:, :1], network.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    rest = torch.nn.functional.interpolate(square, scale_factor=(2.1 / 4, 3.1 / 4), mode="bicubic")
    pixels = torch.nn.functional.conv2d(
        normalised(crop, encoder), network.patch_embed.proj.weight, network.patch_embed.proj.bias, stride=8
    )
    x = torch.cat([network.cls_token, pixels.flatten(2).transpose(1, 2)], 1)
    x = x + torch.cat([cls, rest.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    for block in network.blocks:
        x = block(x)
    torch.testing.assert_close(encoder(crop).patches[:, 0], network.norm(x)[:, 1:], atol=1e-6, rtol=1e-5)
    encoder.scheme = "mae"
    assert not torch.allclose(encoder(crop).patches[:, 0], network.norm(x)[:, 1:], atol=1e-4)


def test_crops_of_two_sizes_pass_through_one_student():
    student = Student(small(scheme="dino", drop_path=0.1))
    views = [
        View(x, x, "global" if x.shape[-1] == 32 else "local") for x in (torch.rand(2, 1, s, s) for s in (32, 16))
    ]
    whole, crop = student(views, [None, None])
    assert whole.patches.shape == (2, 1, 16, 24)
    assert crop.patches.shape == (2, 1, 4, 24)
    assert whole.pooled.shape == crop.pooled.shape == (2, 1, 24)


def test_frozen_patches_get_no_gradient_and_stay_as_they_begin():
    encoder = small(scheme="mocov3", freeze_patches=True)
    encoder(torch.rand(2, 1, 32, 32)).pooled.square().sum().backward()
    fixed = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert fixed == ["network.pos_embed", "network.patch_embed.proj.weight", "network.patch_embed.proj.bias"]
    assert encoder.network.patch_embed.proj.weight.grad is None


def test_weights_of_another_grid_are_resized_as_the_scheme_does_it(tmp_path):
    source = small(scheme="dino", image_size=64)
    torch.save(source.network.state_dict(), tmp_path / "w.pth")
    encoder = small(scheme="dino", init=tmp_path / "w.pth")
    encoder.initialize()
    assert torch.equal(encoder.network.pos_embed, resized_by_dino(source.network.pos_embed, (4, 4)))
    assert encoder.network.pos_embed.requires_grad


@pytest.mark.parametrize("options", [{}, {"scheme": "dino"}, {"mask_token": True}])
def test_an_encoder_in_double_precision_computes_in_it(options):
    encoder = small(**options).eval().double()
    mask = random_mask(2, 1, 16, 4, "token" if options.get("mask_token") else "drop")
    for side in (32, 16):
        assert encoder(torch.rand(2, 1, side, side, dtype=torch.float64)).patches.dtype == torch.float64
    assert encoder(torch.rand(2, 1, 32, 32, dtype=torch.float64), mask).patches.dtype == torch.float64


def test_it_is_an_encoder_whose_options_are_keywords():
    assert issubclass(VisionTransformer, Encoder)
    with pytest.raises(TypeError):
        VisionTransformer("tiny")
