"""A method and its twin, step by step on the same weights, views and masks: how far apart they are."""

from dataclasses import dataclass

import torch

from reference.methods import EPOCHS, METHODS
from reference.twins import STEPS
from ussl.parts import Draws, Progress
from ussl.testing import tiny_batch

IMAGES = 4


@dataclass
class Difference:
    """Largest differences between a method and its twin.

    loss: over all steps, as a share of the loss. gradient: over all steps, as a share of the step's largest gradient.
    parameters: of weights, teacher and centres after the last step; moved: how far these went meanwhile.
    """

    loss: float
    gradient: float
    parameters: float
    moved: float


def compare(name: str) -> Difference:
    """Train a method and its twin for ten steps."""
    torch.manual_seed(0)
    case = METHODS[name]()
    method, twin = case.method, case.twin(case.method)
    begun = {key: x.clone() for key, x in compared(method).items()}
    rule = case.optimizer.start(method, IMAGES)
    loss, gradient = 0.0, 0.0
    for step in range(STEPS):
        views, masks, found, gradients = train(method, case.optimizer, rule, step)
        expected, wanted = twin.step(step, views, masks)
        loss = max(loss, float((found - expected).abs() / expected.abs()))
        gradient = max(gradient, largest(gradients, wanted) / max(float(g.abs().max()) for g in wanted.values()))
    twin.before(STEPS)  # a teacher that moves ahead of a step has already moved for the next
    after = compared(method)
    return Difference(loss, gradient, largest(after, twin.weights), largest(after, begun))


def compared(method):
    """Parameters and centres; not the running statistics of batch norms, which no loss depends on."""
    return {name: x for name, x in method.state_dict().items() if x.is_floating_point() and "running_" not in name}


def largest(found, expected):
    """The largest difference of two dicts of tensors, by the names of the first."""
    assert found.keys() <= expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def train(method, optimizer, rule, step):
    """One step as the engine does it: views, masks, the loss and the gradients as they were before clipping."""
    at = Progress(step, STEPS, step / STEPS * EPOCHS, EPOCHS)
    parts = list(method.parts())
    for part in parts:
        part.before_step(at)
    optimizer.before_step(rule, at)
    batch = tiny_batch(IMAGES, channels=(3, 1)[step % 2], seed=step)  # colour and grey in turn
    draws = Draws(0, step, step, batch.index, batch.turn)
    views = method.augmentation(batch, draws)
    masks = [method.hide(view, draws.view(i)) for i, view in enumerate(views)]
    loss = method(batch, draws)["loss"]
    loss.backward()
    trained = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    gradients = {name: p.grad.clone() for name, p in trained}
    finish(method, optimizer, rule, at, [p for _, p in trained])
    return views, masks, loss.detach(), gradients


def finish(method, optimizer, rule, at, parameters):
    """From gradients to the next step."""
    for part in method.parts():
        part.after_backward(at)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    optimizer.clip_gradients(parameters, norm)
    rule.step()
    for part in method.parts():
        part.after_step(at)
    rule.zero_grad(set_to_none=True)


def table(names=tuple(METHODS)):
    """Markdown: method, differences of loss, gradients and parameters."""
    lines = ["| method | loss | gradient | parameters after 10 steps | these moved by |", "|---|---|---|---|---|"]
    for name in names:
        found = compare(name)
        values = (found.loss, found.gradient, found.parameters, found.moved)
        lines.append(f"| {name} | {' | '.join(f'{value:.1e}' for value in values)} |")
    return "\n".join(lines)
