"""Optimizers, schedules and moving averages by their formulas, one parameter at a time."""

import math

import torch


class AdamW:
    """Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with torch's place of epsilon."""

    def __init__(self, betas, eps=1e-8):
        self.betas, self.eps, self.memory = betas, eps, {}

    def step(self, parameters, gradients, rate, decays):
        """Change parameters in place, dicts by name; decays: of each. One without gradient stays, its count too."""
        first, second = self.betas
        for name, g in gradients.items():
            p = parameters[name]
            count, mean, square = self.memory.get(name, (0, torch.zeros_like(p), torch.zeros_like(p)))
            count, mean, square = count + 1, first * mean + (1 - first) * g, second * square + (1 - second) * g * g
            self.memory[name] = count, mean, square
            right_mean, right_square = mean / (1 - first**count), square / (1 - second**count)
            p -= rate * decays[name] * p
            p -= rate * right_mean / (right_square.sqrt() + self.eps)


class Lars:
    """You et al. 2017, arXiv:1708.03888, as SimCLR's code (rate within the momentum) or MoCo-v3's (outside it)."""

    def __init__(self, momentum=0.9, trust=0.001, rate_inside=True):
        self.momentum, self.trust, self.rate_inside, self.buffers = momentum, trust, rate_inside, {}

    def step(self, parameters, gradients, rate, decay, excluded):
        """Change parameters in place; those named in excluded have neither decay nor adaptation."""
        for name, p in parameters.items():
            g = gradients[name]
            if name not in excluded:
                g = g + decay * p
                long, steep = p.square().sum().sqrt(), g.square().sum().sqrt()
                g = g * (self.trust * long / steep if long > 0 and steep > 0 else 1.0)
            inner, outer = (rate, 1.0) if self.rate_inside else (1.0, rate)
            self.buffers[name] = self.momentum * self.buffers.get(name, torch.zeros_like(p)) + inner * g
            p -= outer * self.buffers[name]


def clip_each(gradients, limit):
    """DINO's: every gradient whose own norm is above the limit is scaled to it, with 1e-6 in the denominator."""
    for g in gradients.values():
        share = limit / (g.square().sum().sqrt() + 1e-6)
        if share < 1:
            g *= share


def clip_all(gradients, limit):
    """torch's: all gradients by one factor, from the norm of all of them together."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    if limit / (norm + 1e-6) < 1:
        for g in gradients.values():
            g *= limit / (norm + 1e-6)


def mae_rate(step, steps, peak, warmup, end=0.0):
    """MAE's and MoCo-v3's: linear for `warmup` steps, then half a cosine."""
    if step < warmup:
        return peak * step / warmup
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def simmim_rate(step, steps, peak, warmup, start, milestone, gamma=0.1):
    """SimMIM's: linear from start for `warmup` steps, then constant, times gamma from step `milestone` on."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return peak * (gamma if step >= milestone else 1)


def dino_values(steps, peak, end, warmup=0, start=0.0):
    """DINO's list of all values: linspace from start to peak, both included, then half a cosine to end."""
    line = [start + (peak - start) * i / (warmup - 1) for i in range(warmup)]
    rest = steps - warmup
    return line + [end + 0.5 * (peak - end) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]


def dino_temperatures(epochs, warm, final, warm_epochs):
    """DINO's teacher temperature by epoch: linspace, then constant."""
    line = [warm + (final - warm) * i / (warm_epochs - 1) for i in range(warm_epochs)]
    return line + [final] * (epochs - warm_epochs)


def momentum(step, steps, start, end=1.0):
    """Half a cosine from start: 1 - (1 - start)(1 + cos(pi step / steps)) / 2 where end is 1."""
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / steps))


def follow(teacher, student, share):
    """teacher <- share teacher + (1 - share) student, in place, dicts by name."""
    for name, own in teacher.items():
        own.copy_(share * own + (1 - share) * student[name])
