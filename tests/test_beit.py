"""The BEiT-style vision transformer against plain loops and timm's own network."""

import copy
import math

import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from timm.models.beit import Beit

from ussl import weights
from ussl.export import load, write_encoder
from ussl.parts import Mask
from ussl.testing import check_encoder
from ussl_plugins.encoders.beit import BeitEncoder
from ussl_plugins.initializations.beit import BeitFormat
from ussl_plugins.initializations.vision_transformer import VisionTransformerFormat

FORMATS = {"beit": BeitFormat, "vision_transformer": VisionTransformerFormat}
TABLE = "relative_position_bias_table"


def small(**options):
    torch.manual_seed(0)
    shape = {"size": "tiny", "width": 24, "depth": 3, "heads": 2, "image_size": 32, "patch": 8}
    encoder = BeitEncoder(**{**shape, **options})
    with torch.no_grad():
        for name, p in encoder.network.named_parameters():
            if name.endswith(("bias", TABLE)):  # zero to begin with, and so without effect
                p.normal_()
    return encoder


def plain(encoder):
    """timm's network of the same shape, with the encoder's weights."""
    shared = encoder.shared_positions
    network = Beit(
        img_size=encoder.image_size,
        patch_size=encoder.patch,
        num_classes=0,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        global_pool="token" if encoder.pooling == "token" else "avg",
    )
    network.load_state_dict(encoder.network.state_dict())
    return network.eval()


def normalised(images, encoder):
    mean, std = (torch.tensor(x)[:, None, None] for x in (encoder.mean, encoder.std))
    return (images.expand(-1, 3, -1, -1) - mean) / std


def random_mask(images, masks, patches, seen, how, image=None):
    order = torch.rand(images, masks, patches).argsort(-1)
    hidden = torch.ones(images, masks, patches, dtype=torch.bool).scatter(2, order[..., :seen], False)
    return Mask(hidden, hidden[:, :, None], seen, patches - seen, how, image)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_whole_image_gives_the_tokens_and_the_feature_of_timm(channels, pooling, shared):
    encoder, images = small(pooling=pooling, shared_positions=shared).eval(), torch.rand(2, channels, 32, 32)
    tokens, network = encoder(images), plain(encoder)
    expected = network.forward_features(normalised(images, encoder))
    assert_close(tokens.patches[:, 0], expected[:, 1:])
    assert_close(tokens.pooled[:, 0], network.forward_head(expected, pre_logits=True))
    assert tokens.where is None
    assert tokens.grid == (4, 4)


def test_attention_is_biased_by_the_row_of_the_table_for_the_offset_of_two_patches():
    encoder, images = small(depth=1).eval(), torch.rand(1, 1, 32, 32)
    network = encoder.network
    block, table = network.blocks[0], network.blocks[0].attn.relative_position_bias_table
    x = torch.cat([network.cls_token, network.patch_embed(normalised(images, encoder))], 1)
    y = block.norm1(x)[0]
    q, k, v = ((y @ m.T).view(17, 2, 12) for m in block.attn.qkv.weight.chunk(3))
    q, v = q + block.attn.q_bias.view(2, 12), v + block.attn.v_bias.view(2, 12)
    added = torch.zeros(17, 2, 12)
    for i in range(17):
        for head in range(2):
            scores = torch.stack(
                [q[i, head] @ k[j, head] / math.sqrt(12) + table[offset(i, j), head] for j in range(17)]
            )
            added[i, head] = scores.softmax(0) @ v[:, head]
    x = x + block.gamma_1 * block.attn.proj(added.flatten(1))
    x = x + block.gamma_2 * block.mlp(block.norm2(x))
    assert_close(encoder(images).patches[0, 0], network.norm(x)[0, 1:])


def offset(i, j, side=4):
    """The row of the table for token i that looks at token j; token 0 is the class."""
    offsets = (2 * side - 1) ** 2
    if not (i and j):
        return offsets + (2 if i == j else 1 if i else 0)
    (row, column), (to_row, to_column) = (divmod(n - 1, side) for n in (i, j))
    return (row - to_row + side - 1) * (2 * side - 1) + column - to_column + side - 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [(48, 16), (64, 64), (16, 16)])
def test_another_image_size_gives_the_tokens_of_timms_resized_network(size, shared, recwarn):
    encoder, images = small(shared_positions=shared).eval(), torch.rand(2, 1, *size)
    tokens, network = encoder(images), plain(encoder)
    assert not recwarn.list
    network.set_input_size(size)
    assert_close(tokens.patches[:, 0], network.forward_features(normalised(images, encoder))[:, 1:])
    recwarn.clear()  # timm's own


def test_positions_learn_at_another_image_size():
    encoder = small()
    encoder(torch.rand(1, 1, 48, 48)).pooled.square().sum().backward()
    assert all(block.attn.relative_position_bias_table.grad.any() for block in encoder.network.blocks)


def test_a_mask_that_changed_the_pixels_is_encoded_whole():
    encoder, images = small().eval(), torch.rand(2, 1, 32, 32)
    changed = torch.rand(2, 3, 1, 32, 32)
    tokens = encoder(images, random_mask(2, 3, 16, 4, "fill", changed))
    for k in range(3):
        alone = encoder(changed[:, k])
        assert_close(tokens.patches[:, k], alone.patches[:, 0])
        assert_close(tokens.pooled[:, k], alone.pooled[:, 0])


def test_a_mask_token_stands_where_patches_are_hidden():
    encoder, images = small(mask_token=True).eval(), torch.rand(2, 1, 32, 32)
    mask, network = random_mask(2, 2, 16, 5, "token"), plain(encoder)
    tokens = encoder(images, mask)
    embedded = network.patch_embed(normalised(images, encoder))
    for b in range(2):
        for k in range(2):
            rows = [encoder.mask_token[0, 0] if mask.hidden[b, k, n] else embedded[b, n] for n in range(16)]
            x = torch.stack([network.cls_token[0, 0], *rows])[None]
            for block in network.blocks:
                x = block(x)
            x = network.norm(x)[0]
            assert_close(tokens.pooled[b, k], x[0])
            assert_close(tokens.patches[b, k], x[1:])


@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize("options", [{"shared_positions": True}, {"mask_token": True}, {"drop_path": 0.0}])
def test_it_keeps_the_contract_of_encoders(pooling, options):
    check_encoder(small(pooling=pooling, **options))
    check_encoder(small(pooling=pooling, **options), (16, 40))


@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize("part", ["pooled", "patches"])
def test_every_parameter_has_a_gradient_whatever_the_objective_looks_at(pooling, part):
    encoder = small(pooling=pooling, mask_token=True)
    getattr(encoder(torch.rand(2, 1, 32, 32)), part).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_a_mask_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"beit cannot encode a mask that says 'drop': it takes \['fill'\]"):
        small()(torch.rand(1, 1, 32, 32), random_mask(1, 1, 16, 4, "drop"))
    with pytest.raises(ValueError, match=r"it takes \['token'\]"):
        small(mask_token=True)(torch.rand(1, 1, 32, 32), random_mask(1, 1, 16, 4, "fill"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_scale": 0.0}, "layer_scale must be above 0"),
        ({"width": 25}, "beit: width 25 does not divide into 2 heads"),
        ({"pooling": "max"}, "beit: size is .* pooling token or average"),
        ({"image_size": 30}, "does not divide into patches of 8: use 32 x 32"),
    ],
)
def test_options_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_weights_begin_as_those_of_beit():
    network = BeitEncoder(size="tiny", width=96, depth=3, heads=2, image_size=32, patch=8, layer_scale=0.2).network
    for i, block in enumerate(network.blocks):
        shrunk = 1 / math.sqrt(2 * (i + 1))
        for matrix, scale in (
            (block.attn.qkv, 1),
            (block.mlp.fc1, 1),
            (block.attn.proj, shrunk),
            (block.mlp.fc2, shrunk),
        ):
            assert matrix.weight.std().item() == pytest.approx(0.02 * scale, rel=0.05)
        zeros = (block.attn.q_bias, block.attn.v_bias, block.attn.relative_position_bias_table, block.attn.proj.bias)
        assert all(p.abs().max() == 0 for p in zeros)
        assert torch.equal(block.gamma_1, torch.full((96,), 0.2))
        assert torch.equal(block.gamma_2, torch.full((96,), 0.2))
    assert network.norm.eps == network.blocks[0].norm1.eps == 1e-6


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputing_activations_changes_no_gradient(drop_path):
    encoder, images, found = small(drop_path=drop_path), torch.rand(4, 1, 32, 32), []
    for recompute in (False, True):
        encoder.recompute = recompute
        encoder.zero_grad()
        torch.manual_seed(7)
        encoder(images).patches.square().sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("pooling", ["token", "average"])
@pytest.mark.parametrize("shared", [False, True])
def test_an_exported_encoder_is_timms_network(pooling, shared, tmp_path):
    encoder, images = small(pooling=pooling, shared_positions=shared).eval(), torch.rand(2, 1, 32, 32)
    write_encoder(encoder, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert_close(network(normalised(images, encoder)), encoder(images).pooled[:, 0])
    loaded = load(tmp_path)
    assert loaded.image_size == 32
    assert_close(loaded.embed(images), encoder(images).pooled[:, 0])
    assert_close(loaded.tokens(images), encoder(images).patches[:, 0])


def saved(path, source, wrap=lambda state: {"model": state}):
    torch.save(wrap(dict(source.network.state_dict())), path)
    return path


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_weights_with_shared_and_with_equal_positions_start_either_network(ours, theirs, tmp_path):
    source = small(shared_positions=theirs)
    if not theirs:
        first = source.network.blocks[0].attn.relative_position_bias_table
        for block in source.network.blocks:
            block.attn.relative_position_bias_table.data.copy_(first)
    encoder = small(shared_positions=ours, init=saved(tmp_path / "w.pth", source))
    with torch.no_grad():
        for p in encoder.network.parameters():
            p.zero_()
    lines = encoder.initialize(FORMATS)
    assert len(lines) == 1, lines
    images = torch.rand(1, 1, 32, 32)
    assert_close(encoder.eval()(images).patches, source.eval()(images).patches)
    assert encoder.lineage()[0]["sha256"] == weights.digest(tmp_path / "w.pth")


def test_weights_of_timms_names_with_shared_positions_need_no_format(tmp_path):
    source = small(shared_positions=True)
    write_encoder(source, tmp_path)
    encoder = small(init=tmp_path)
    encoder.initialize({})
    table = source.network.rel_pos_bias.relative_position_bias_table
    assert all(torch.equal(block.attn.relative_position_bias_table, table) for block in encoder.network.blocks)


def test_positions_that_differ_between_blocks_are_not_shared(tmp_path):
    encoder = small(shared_positions=True, init=saved(tmp_path / "w.pth", small()))
    with pytest.raises(ValueError, match="other relative positions in every block: write shared_positions: false"):
        encoder.initialize(FORMATS)


@pytest.mark.parametrize("shared", [False, True])
def test_positions_of_another_grid_are_resized_as_timm_does_it(shared, tmp_path, recwarn):
    source = small(shared_positions=shared, image_size=64)
    encoder = small(shared_positions=shared, init=saved(tmp_path / "w.pth", source))
    assert len(encoder.initialize(FORMATS)) == 1
    assert not recwarn.list
    before, after = source.network.state_dict(), encoder.network.state_dict()
    tables = [name for name in after if name.endswith(TABLE)]
    assert len(tables) == (1 if shared else 3)
    for name in tables:
        assert torch.equal(after[name], resize_rel_pos_bias_table(before[name], (4, 4), (7 * 7 + 3, 2)))
    recwarn.clear()  # timm's own


def test_weights_of_networks_with_other_layers_are_refused(tmp_path):
    absolute = Beit(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=0, init_values=0.1,
        use_abs_pos_emb=True, use_rel_pos_bias=True,
    )  # fmt: skip
    torch.save(absolute.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"has layers that beit lacks \(pos_embed, ...\): use weights of a plain Beit"
    ):
        small(init=tmp_path / "w.pth").initialize(FORMATS)


def test_a_timm_name_starts_the_network_and_tells_how_images_were_normalised(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    theirs = timm.create_model("beit_base_patch16_224", depth=1, num_classes=0)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "from_hub", lambda *a: tmp_path / "model.safetensors")
    monkeypatch.setattr(weights, "timm_model", lambda *a: (theirs, None))
    encoder = BeitEncoder(depth=1, pooling="average", init="beit_base_patch16_224")
    assert encoder.mean == (0.5, 0.5, 0.5)
    assert len(encoder.initialize(FORMATS)) == 1
    assert torch.equal(encoder.network.blocks[0].attn.q_bias, theirs.blocks[0].attn.q_bias)
    monkeypatch.setattr(weights, "timm_model", lambda *a: (timm.create_model("test_vit", num_classes=0), None))
    with pytest.raises(ValueError, match="beit_base_patch16_224 is a VisionTransformer: use weights of a BEiT"):
        encoder.initialize(FORMATS)


@pytest.mark.parametrize("pooling", ["token", "average"])
def test_it_works_in_double_precision_and_survives_a_deep_copy(pooling):
    encoder = small(pooling=pooling).eval().double()
    for side in (32, 48):
        images = torch.rand(1, 1, side, side, dtype=torch.float64)
        tokens = encoder(images)
        assert tokens.patches.dtype == tokens.pooled.dtype == torch.float64
        assert torch.equal(copy.deepcopy(encoder)(images).patches, tokens.patches)


def test_paths_are_dropped_more_often_towards_the_end_of_both_branches():
    encoder = small(depth=5, drop_path=0.4)
    for branch in ("drop_path1", "drop_path2"):
        rates = [getattr(getattr(block, branch), "drop_prob", 0.0) for block in encoder.network.blocks]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    image = torch.rand(2, 1, 32, 32)
    for branch in ("drop_path1", "drop_path2"):  # one alone makes two passes differ
        lone = small(depth=5, drop_path=0.4).train()
        for block in lone.network.blocks:
            setattr(block, "drop_path2" if branch == "drop_path1" else "drop_path1", torch.nn.Identity())
        assert any(not torch.equal(lone(image).patches, lone(image).patches) for _ in range(8))
