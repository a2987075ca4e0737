"""Methods with several views or a teacher that follows the student, in plain loops."""

import torch

from reference import losses, updates
from reference.heads import mlp, prototypes
from reference.transformer import dino_positions, ijepa_predictor, vit
from reference.twins import GRID, HEADS, PATCH, PEAK, STEPS, WARMUP, Twin, inside, normalised, places


def perceptron(weights):
    """The layers of heads.mlp under MoCo-v3's numbers: linear 0, batch norm 1, ReLU 2, linear 3, ..."""
    numbers = [int(n.split(".")[0]) for n, x in weights.items() if n.endswith(".weight") and x.ndim == 2]
    return [(weights[f"{i}.weight"], weights.get(f"{i + 1}.weight"), weights.get(f"{i + 1}.bias")) for i in numbers]


def scores(weights, rows):
    """DINO's head on (B, D)."""
    layers = [(weights[f"mlp.{i}.weight"], weights[f"mlp.{i}.bias"]) for i in (0, 2, 4)]
    names = (f"last_layer.parametrizations.weight.original{i}" for i in (1, 0))
    directions, lengths = (weights[name] for name in names)
    return prototypes(layers, directions, lengths.flatten(), rows)


class SimCLR(Twin):
    def __init__(self, method):
        super().__init__(method)
        self.optimizer = updates.Lars(trust=0.02)

    def loss(self, step, views, masks):
        rows = torch.cat([self.pooled("student", view) for view in views])  # batch norm sees both views
        projections = mlp(perceptron(inside(self.weights, "student.head.mlp.")), rows)
        return losses.nt_xent(*projections.chunk(2), 0.1)

    def update(self, step, gradients):
        own = {name: self.weights[name] for name in self.trained}
        excluded = [name for name in self.trained if own[name].ndim <= 1]
        self.optimizer.step(own, gradients, updates.mae_rate(step, STEPS, 0.02, WARMUP), 1e-2, excluded)


class MoCoV3(Twin):
    betas = (0.9, 0.999)

    def before(self, step):
        self.follow(updates.momentum(step, STEPS, 0.9))

    def loss(self, step, views, masks):
        keys = [self.projected("target.teacher", view).detach() for view in views]
        layers = perceptron(inside(self.weights, "objective.predictor."))
        queries = [mlp(layers, self.projected("student", view)) for view in views]  # batch norm sees one view
        return losses.mocov3(queries, keys, 0.2)

    def projected(self, prefix, view):
        return mlp(perceptron(inside(self.weights, f"{prefix}.head.mlp.")), self.pooled(prefix, view))

    def decays(self, name):
        return True


class Dino(Twin):
    betas = (0.9, 0.999)

    def loss(self, step, views, masks):
        said = [self.scores("student", view) for view in views]
        self.answers = [self.scores("target.teacher", view).detach() for view in views if view.role == "global"]
        return losses.dino(said, self.answers, self.weights["objective.centre.value"], 0.1, self.temperature(step))

    def temperature(self, step):
        return updates.dino_temperatures(5, 0.04, 0.07, 3)[step * 5 // STEPS]  # of 5 epochs

    def scores(self, prefix, view):
        """(B, prototypes) of the class token."""
        tokens = [self.tokens(prefix, image)[0] for image in view.image]
        return scores(inside(self.weights, f"{prefix}.head."), torch.stack(tokens))

    def tokens(self, prefix, image, hidden=None):
        network = inside(self.weights, f"{prefix}.encoder.network.")
        network["mask_token"] = self.weights.get(f"{prefix}.encoder.mask_token")
        grid = (image.shape[1] // PATCH, image.shape[2] // PATCH)
        positions = None if grid == GRID else dino_positions(network["pos_embed"][0], GRID[0], grid)
        return vit(network, normalised(image), HEADS, PATCH, hidden=hidden, positions=positions)

    def update(self, step, gradients):
        updates.clip_each(gradients, 0.05)
        if step * 5 // STEPS < 1:  # the prototypes stand still in the first epoch
            gradients = {name: g for name, g in gradients.items() if ".last_layer." not in name}
        decay = updates.dino_values(STEPS, 0.04, 0.4)[step]
        decays = {name: decay if self.decays(name) else 0.0 for name in self.trained}
        rate = updates.dino_values(STEPS, PEAK, 1e-6, WARMUP)[step]
        self.optimizer.step(self.weights, gradients, rate, decays)

    def after(self, step):
        self.move("objective.centre.value", torch.cat(self.answers))
        self.follow(updates.momentum(step, STEPS, 0.9))

    def move(self, name, rows):
        self.weights[name] = losses.moved_centre(self.weights[name], rows)


class Ibot(Dino):
    def loss(self, step, views, masks):
        wide = [i for i, view in enumerate(views) if view.role == "global"]
        hidden = [masks[i].hidden[:, 0] for i in wide]
        seen = [self.both("student", views[i].image, mask) for i, mask in zip(wide, hidden, strict=True)]
        told = [self.both("target.teacher", views[i].image) for i in wide]
        said = [pair[0] for pair in seen] + [self.scores("student", v) for v in views if v.role == "local"]
        self.answers, self.patches = ([pair[k].detach() for pair in told] for k in (0, 1))
        heat, centre = self.temperature(step), self.weights["objective.centre.value"]
        image = losses.dino(said, self.answers, centre, 0.1, heat)
        said, centre = [pair[1] for pair in seen], self.weights["objective.patch_centre.value"]
        return image + losses.ibot_patches(said, self.patches, hidden, centre, 0.1, heat)

    def both(self, prefix, images, masks=None):
        """Scores (B, prototypes) of class tokens and (B, N, prototypes) of patches."""
        head = inside(self.weights, f"{prefix}.head.")
        masks = [None] * len(images) if masks is None else masks
        rows = [scores(head, self.tokens(prefix, x, hidden)) for x, hidden in zip(images, masks, strict=True)]
        return torch.stack([r[0] for r in rows]), torch.stack([r[1:] for r in rows])

    def after(self, step):
        super().after(step)
        self.move("objective.patch_centre.value", torch.cat(self.patches).flatten(0, 1))


class Ijepa(Twin):
    def loss(self, step, views, masks):
        student, teacher = (inside(self.weights, f"{p}.encoder.network.") for p in ("student", "target.teacher"))
        predictor = inside(self.weights, "objective.")
        said, wanted = [], []
        for image, hidden, blocks in zip(views[0].image, masks[0].hidden[:, 0], masks[0].predict[:, 0], strict=True):
            seen = places(~hidden)
            told = vit(teacher, normalised(image), HEADS, PATCH)[1:].detach()
            context = vit(student, normalised(image), HEADS, PATCH, seen)[1:]
            for block in blocks:
                said += ijepa_predictor(predictor, context, seen, places(block), HEADS, GRID)
                wanted += [told[n] for n in places(block)]
        return losses.ijepa(said, wanted)

    def update(self, step, gradients):
        updates.clip_all(gradients, 0.1)
        super().update(step, gradients)

    def after(self, step):
        self.follow(updates.momentum(step, STEPS, 0.9))
