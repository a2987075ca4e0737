"""Vision transformers in plain matrix operations, one image at a time, from weights under timm's names."""

import math

import torch

EPS = 1e-6


def linear(weights, name, tokens):
    bias = weights.get(f"{name}.bias")
    product = tokens @ weights[f"{name}.weight"].T
    return product if bias is None else product + bias


def layer_norm(weights, name, tokens, eps=EPS):
    """Of each row (T, D), the variance biased."""
    away = tokens - tokens.sum(1, keepdim=True) / tokens.shape[1]
    variance = away.square().sum(1, keepdim=True) / tokens.shape[1]
    return away / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x):
    """x Phi(x), with the normal distribution itself and not its tanh approximation."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention(weights, name, tokens, heads, bias=None):
    """Scaled dot products by head; bias: (heads, tokens, tokens) added to the scores."""
    count, width = tokens.shape
    each = width // heads
    queries, keys, values = _projected(weights, name, tokens).reshape(count, 3, width).unbind(1)
    mixed = []
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(each)
        powers = (scores if bias is None else scores + bias[head]).exp()
        mixed.append(powers / powers.sum(1, keepdim=True) @ values[:, part])
    return linear(weights, f"{name}.proj", torch.cat(mixed, 1))


def _projected(weights, name, tokens):
    """Queries, keys and values side by side; BEiT has no bias of keys."""
    product = linear(weights, f"{name}.qkv", tokens)
    if f"{name}.q_bias" in weights:
        queries, values = weights[f"{name}.q_bias"], weights[f"{name}.v_bias"]
        product = product + torch.cat([queries, torch.zeros_like(queries), values])
    return product


def block(weights, name, tokens, heads, eps=EPS, bias=None):
    """Pre-norm attention and perceptron, each times a layer scale where there is one."""
    first, second = (weights.get(f"{name}.gamma_{i}", 1.0) for i in (1, 2))
    tokens = tokens + first * attention(
        weights, f"{name}.attn", layer_norm(weights, f"{name}.norm1", tokens, eps), heads, bias
    )
    inner = gelu(linear(weights, f"{name}.mlp.fc1", layer_norm(weights, f"{name}.norm2", tokens, eps)))
    return tokens + second * linear(weights, f"{name}.mlp.fc2", inner)


def depth(weights, prefix="blocks."):
    """How many blocks the weights have."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in weights if name.startswith(prefix))


def projected_patches(weights, image, patch):
    """(N, D): every patch times the projection's filters, each laid out as channel, row, column."""
    filters = weights["patch_embed.proj.weight"].flatten(1)
    cells = []
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            cell = image[:, top : top + patch, left : left + patch].reshape(-1)
            cells.append(filters @ cell + weights["patch_embed.proj.bias"])
    return torch.stack(cells)


def vit(weights, image, heads, patch, seen=None, hidden=None, positions=None):
    """(1 + S, D) after the last norm, the class token first.

    seen: indices of the patches to encode, in that order (MAE); hidden: booleans of the patches that a mask token
    stands for (iBOT); positions: (1 + N, D) where they are not those of the weights.
    """
    positions = weights["pos_embed"][0] if positions is None else positions
    patches = projected_patches(weights, image, patch)
    if hidden is not None:
        patches = torch.stack(
            [weights["mask_token"].flatten() if h else x for h, x in zip(hidden, patches, strict=True)]
        )
    patches = patches + positions[1:]
    if seen is not None:
        patches = torch.stack([patches[int(n)] for n in seen])
    tokens = torch.cat([weights["cls_token"][0] + positions[:1], patches])
    for i in range(depth(weights)):
        tokens = block(weights, f"blocks.{i}", tokens, heads)
    return layer_norm(weights, "norm", tokens)


def mae_decoder(weights, tokens, seen, heads, grid):
    """(N, channels): He et al. 2022, section 3. tokens (1 + S, D) of the patches `seen`, the class token first.

    A mask token stands at every other place; all get positions; the class token is dropped at the end. Names are those
    of the released code.
    """
    narrow = linear(weights, "decoder_embed", tokens)
    places = [int(n) for n in seen]
    rows = [narrow[0]]
    for n in range(grid[0] * grid[1]):
        rows.append(narrow[1 + places.index(n)] if n in places else weights["mask_token"].flatten())
    x = torch.stack(rows) + sincos(narrow.shape[1], *grid)
    for i in range(depth(weights, "decoder_blocks.")):
        x = block(weights, f"decoder_blocks.{i}", x, heads)
    return linear(weights, "decoder_pred", layer_norm(weights, "decoder_norm", x))[1:]


def ijepa_predictor(weights, tokens, seen, asked, heads, grid):
    """(A, D): Assran et al. 2023, appendix A. tokens (S, D) of the context's patches `seen`, no class token.

    A mask token with the position of each patch of `asked`, one block, follows the context. Names are the released
    code's.
    """
    positions = sincos(len(weights["predictor_embed.bias"]), *grid)[1:]
    narrow = linear(weights, "predictor_embed", tokens)
    context = [token + positions[int(n)] for token, n in zip(narrow, seen, strict=True)]
    x = torch.stack([*context, *[weights["mask_token"].flatten() + positions[int(n)] for n in asked]])
    for i in range(depth(weights, "predictor_blocks.")):
        x = block(weights, f"predictor_blocks.{i}", x, heads)
    return linear(weights, "predictor_proj", layer_norm(weights, "predictor_norm", x))[len(seen) :]


def shuffled(channels, patch, grid):
    """(C, h, w) of a 1 x 1 convolution's output (N, C p p), columns of the patch fastest: SimMIM's pixel shuffle."""
    count = channels.shape[1] // patch**2
    image = torch.empty(count, grid[0] * patch, grid[1] * patch, dtype=channels.dtype)
    for n, values in enumerate(channels):
        top, left = n // grid[1] * patch, n % grid[1] * patch
        image[:, top : top + patch, left : left + patch] = values.reshape(count, patch, patch)
    return image


def beit(weights, image, heads, patch, grid):
    """(1 + N, D) after the last norm of BEiT with one table of relative positions for all blocks."""
    bias = relative_bias(weights["rel_pos_bias.relative_position_bias_table"], *grid, heads)
    tokens = torch.cat([weights["cls_token"][0], projected_patches(weights, image, patch)])
    for i in range(depth(weights)):
        tokens = block(weights, f"blocks.{i}", tokens, heads, bias=bias)
    return layer_norm(weights, "norm", tokens)


def sincos(width, rows, columns):
    """(1 + N, D): MAE's fixed positions; half the channels for the column, half for the row, zeros for the class."""
    quarter = width // 4
    table = [[0.0] * width]
    for row in range(rows):
        for column in range(columns):
            values = []
            for place in (column, row):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                values += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(values)
    return torch.tensor(table, dtype=torch.float64).float().double()  # kept in single precision, as MAE's are


def relative_bias(table, rows, columns, heads):
    """(heads, 1 + N, 1 + N) of BEiT's table ((2 rows - 1)(2 columns - 1) + 3, heads), the class token first.

    The last three entries: class to patch, patch to class, class to class.
    """
    assert table.shape == ((2 * rows - 1) * (2 * columns - 1) + 3, heads)
    places = [(y, x) for y in range(rows) for x in range(columns)]
    count = (2 * rows - 1) * (2 * columns - 1)
    result = [[table[count + 2]] + [table[count]] * len(places)]
    for y, x in places:
        offsets = [(y - other[0] + rows - 1) * (2 * columns - 1) + x - other[1] + columns - 1 for other in places]
        result.append([table[count + 1]] + [table[i] for i in offsets])
    return torch.stack([torch.stack(row) for row in result]).permute(2, 0, 1)


def cubic(distance, a=-0.75):
    """Keys 1981, the kernel of bicubic interpolation."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def dino_positions(positions, side, grid):
    """(1 + N, D) of a square grid's (1 + side side, D) for another grid: bicubic, by (count + 0.1) / side."""

    def matrix(count):
        table = torch.zeros(count, side, dtype=torch.float64)
        for i in range(count):
            place = (i + 0.5) * side / (count + 0.1) - 0.5
            first = math.floor(place)
            for j in range(first - 1, first + 3):
                table[i, min(max(j, 0), side - 1)] += cubic(place - j)
        return table

    square = positions[1:].reshape(side, side, -1)
    moved = torch.einsum("yr,xc,rcd->yxd", matrix(grid[0]), matrix(grid[1]), square)
    return torch.cat([positions[:1], moved.flatten(0, 1)])
