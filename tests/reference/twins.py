"""Masked methods in plain loops, and what all twins share: from weights, pictures and masks to the next weights."""

import torch

from reference import losses, updates
from reference.transformer import beit, mae_decoder, shuffled, vit

PATCH, HEADS, GRID = 4, 2, (4, 4)  # of the students; the pictures have 16 x 16 pixels
PEAK, STEPS, WARMUP = 2e-3, 10, 3
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(image, statistics=IMAGENET):
    """(3, h, w) in float64; the constants are kept in single precision, as the released codes do."""
    mean, std = (torch.tensor(values).double()[:, None, None] for values in statistics)
    return (image.double() - mean) / std


def inside(weights, prefix):
    """The weights whose names begin so, without that."""
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def places(mask_row):
    """Numbers of the true ones, ascending."""
    return [n for n, true in enumerate(mask_row.tolist()) if true]


class Twin:
    """A method's copy. `weights`: by the names of the method's state; `trained`: the names of what is trained."""

    betas = (0.9, 0.95)

    def __init__(self, method):
        self.weights = {name: x.detach().clone() for name, x in method.state_dict().items()}
        self.trained = [name for name, p in method.named_parameters() if p.requires_grad]
        self.optimizer = updates.AdamW(self.betas)

    def step(self, step, views, masks):
        """Do step number `step`; its loss and gradients."""
        self.before(step)
        for name in self.trained:
            self.weights[name].requires_grad_()
        loss = self.loss(step, views, masks)
        leaves = [self.weights[name] for name in self.trained]
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        for leaf in leaves:
            leaf.requires_grad_(False)
        gradients = dict(zip(self.trained, found, strict=True))
        self.update(step, {name: g.clone() for name, g in gradients.items()})
        self.after(step)
        return loss.detach(), gradients

    def before(self, step):
        """What moves ahead of a step."""

    def after(self, step):
        """What moves when the step is done."""

    def update(self, step, gradients):
        decays = {name: 0.05 if self.decays(name) else 0.0 for name in self.trained}
        self.optimizer.step(self.weights, gradients, updates.mae_rate(step, STEPS, PEAK, WARMUP), decays)

    def decays(self, name):
        return self.weights[name].ndim > 1 and not name.endswith(".bias")

    def follow(self, share):
        """The teacher, of trained weights."""
        teacher = {name: self.weights[f"target.teacher.{name.removeprefix('student.')}"] for name in self.followed()}
        updates.follow(teacher, self.weights, share)

    def followed(self):
        return [name for name in self.trained if name.startswith("student.")]

    def pooled(self, prefix, view):
        """(B, D) class tokens of whole pictures."""
        network = inside(self.weights, f"{prefix}.encoder.network.")
        return torch.stack([vit(network, normalised(x), HEADS, PATCH)[0] for x in view.image])


class Mae(Twin):
    patch = PATCH

    def predictions(self, view, mask):
        network, decoder = (inside(self.weights, name) for name in ("student.encoder.network.", "objective."))
        said = []
        for image, hidden in zip(view.image, mask.hidden[:, 0], strict=True):
            seen = places(~hidden)
            tokens = vit(network, normalised(image), HEADS, self.patch, seen)
            said.append(mae_decoder(decoder, tokens, seen, HEADS, GRID))
        return said

    def loss(self, step, views, masks):
        images = [normalised(x) for x in views[0].clean]
        return losses.mae(self.predictions(views[0], masks[0]), images, masks[0].hidden[:, 0], self.patch)


class Deblur(Mae):
    def loss(self, step, views, masks):
        images = [normalised(x) for x in views[0].clean]
        return losses.deblur(self.predictions(views[0], masks[0]), images, self.patch)


class Urfm(Mae):
    patch = 16

    def __init__(self, method):
        super().__init__(method)
        self.teacher = method.target.network.trunk.state_dict()
        self.statistics = tuple(tuple(x.flatten().tolist()) for x in (method.target.mean, method.target.std))

    def loss(self, step, views, masks):
        wanted = [self.ask(image) for image in views[0].clean]
        return losses.token_error(self.predictions(views[0], masks[0]), wanted, masks[0].hidden[:, 0])

    def ask(self, image):
        """(N, D) the teacher's tokens, positions by the antialiased bicubic of torch, in single precision."""
        table = self.teacher["pos_embed"][0].float()
        side = round(len(table[1:]) ** 0.5)
        square = table[1:].T.reshape(1, -1, side, side)
        rest = torch.nn.functional.interpolate(square, GRID, mode="bicubic", antialias=True)[0].flatten(1).T
        positions = torch.cat([table[:1], rest]).double()
        return vit(self.teacher, normalised(image, self.statistics), 2, self.patch, positions=positions)[1:]


class Usfm(Twin):
    betas = (0.9, 0.999)

    def loss(self, step, views, masks):
        network = inside(self.weights, "student.encoder.network.")
        said, pixels = [], []
        for image, hidden in zip(masks[0].image[:, 0], masks[0].hidden[:, 0], strict=True):
            tokens = beit(network, normalised(image), HEADS, PATCH, GRID)[1:]
            filters, shift = (self.weights[f"objective.decoder.0.{name}"] for name in ("weight", "bias"))
            said.append(shuffled(tokens @ filters[:, :, 0, 0].T + shift, PATCH, GRID))
            cells = hidden.reshape(GRID)
            pixels.append(torch.stack([torch.stack([cells[y // 4, x // 4] for x in range(16)]) for y in range(16)]))
        return losses.usfm(said, [normalised(x) for x in views[0].clean], pixels)

    def update(self, step, gradients):
        updates.clip_all(gradients, 0.5)
        rate = updates.simmim_rate(step, STEPS, PEAK, WARMUP, PEAK / 10, 7)
        decays = {name: 0.05 if self.decays(name) and "cls_token" not in name else 0.0 for name in self.trained}
        self.optimizer.step(self.weights, gradients, rate, decays)
