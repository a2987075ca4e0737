"""The losses of the papers, one image, patch and pair at a time.

Images are (C, h, w) as a network is given them, that is, normalised; a batch is a list or a tensor of such. Tensors
serve only so that autograd gives gradients.
"""

import math

import torch


def unit(vector):
    return vector / vector.square().sum().sqrt()


def softmax(scores):
    powers = (scores - scores.max().detach()).exp()
    return powers / powers.sum()


def cross_entropy(wanted, scores):
    """- sum_k wanted_k log softmax(scores)_k."""
    return -(wanted * softmax(scores).log()).sum()


def nt_xent(first, second, temperature):
    """Chen et al. 2020, arXiv:2002.05709, eq. 1, the mean over all 2 B projections of two views of B images."""
    projections = [unit(x) for x in first] + [unit(x) for x in second]
    total = 0.0
    for i, own in enumerate(projections):
        partner = (i + len(first)) % len(projections)
        likeness = {k: torch.dot(own, x) / temperature for k, x in enumerate(projections) if k != i}
        total = total - (likeness[partner].exp() / sum(x.exp() for x in likeness.values())).log()
    return total / len(projections)


def mocov3(queries, keys, temperature):
    """Chen et al. 2021, arXiv:2104.02057, algorithm 1: contrast of q1 with k2 and of q2 with k1, each times 2 T."""
    total = 0.0
    for asked, given in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i, query in enumerate(asked):
            scores = torch.stack([torch.dot(unit(query), unit(key)) / temperature for key in given])
            total = total - 2 * temperature * softmax(scores)[i].log() / len(asked)
    return total


def dino(students, teachers, centre, student_temperature, teacher_temperature):
    """Caron et al. 2021, arXiv:2104.14294, algorithm 1: mean over pairs of unlike views, then over images.

    students, teachers: scores (B, prototypes) of every view and of the global ones, which come first.
    """
    pairs = [(q, v) for q in range(len(teachers)) for v in range(len(students)) if q != v]
    total = 0.0
    for q, v in pairs:
        for wanted, scores in zip(teachers[q], students[v], strict=True):
            total = total + cross_entropy(
                softmax((wanted - centre) / teacher_temperature), scores / student_temperature
            )
    return total / len(pairs) / len(students[0])


def moved_centre(centre, scores, momentum=0.9):
    """c <- m c + (1 - m) mean of the teacher's scores, (rows, prototypes), of all global views together."""
    mean = sum(scores) / len(scores)
    return momentum * centre + (1 - momentum) * mean


def ibot_patches(students, teachers, hidden, centre, student_temperature, teacher_temperature):
    """Zhou et al. 2022, arXiv:2111.07832, eq. 2: of each view's own hidden patches, mean by image, image, view.

    students, teachers: a tensor (B, N, prototypes) a global view; hidden: (B, N) of each, true where masked.
    """
    total = 0.0
    for student, teacher, mask in zip(students, teachers, hidden, strict=True):
        for said, wanted, hides in zip(student, teacher, mask, strict=True):
            where = [n for n in range(len(hides)) if hides[n]]
            for n in where:
                target = softmax((wanted[n] - centre) / teacher_temperature)
                total = total + cross_entropy(target, said[n] / student_temperature) / len(where) / len(student)
    return total / len(students)


def pieces(image, patch):
    """The patches of an image as vectors: row, column, channel, the channel fastest."""
    channels, height, width = image.shape
    cells = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            places = [(top + p, left + q, c) for p in range(patch) for q in range(patch) for c in range(channels)]
            cells.append(torch.stack([image[c, y, x] for y, x, c in places]))
    return cells


def normalised(vector):
    """By its mean and its unbiased variance, as MAE's code does."""
    mean = vector.sum() / len(vector)
    variance = (vector - mean).square().sum() / (len(vector) - 1)
    return (vector - mean) / (variance + 1e-6).sqrt()


def mae(predictions, images, hidden, patch, norm=True):
    """He et al. 2022, arXiv:2111.06377: squared error, mean over a patch, then over all hidden patches."""
    errors = []
    for said, image, hides in zip(predictions, images, hidden, strict=True):
        for n, piece in enumerate(pieces(image, patch)):
            wanted = normalised(piece) if norm else piece
            if hides[n]:
                errors.append((said[n] - wanted).square().sum() / len(wanted))
    return sum(errors) / len(errors)


def deblur(predictions, images, patch):
    """Kang et al. 2023, arXiv:2306.08249: squared error of every patch, hidden or not, of the sharp image."""
    errors = [
        (said[n] - piece).square().sum() / len(piece)
        for said, image in zip(predictions, images, strict=True)
        for n, piece in enumerate(pieces(image, patch))
    ]
    return sum(errors) / len(errors)


def token_error(predictions, wanted, hidden):
    """Squared error of a frozen network's tokens, mean over channels, then over the hidden patches of the batch."""
    errors = [
        (predictions[b][n] - wanted[b][n]).square().sum() / len(wanted[b][n])
        for b in range(len(wanted))
        for n in range(len(wanted[b]))
        if hidden[b][n]
    ]
    return sum(errors) / len(errors)


def layer_normed(vector, eps=1e-5):
    mean = vector.sum() / len(vector)
    variance = (vector - mean).square().sum() / len(vector)
    return (vector - mean) / (variance + eps).sqrt()


def smooth_l1(difference, beta=1.0):
    """Elementwise: quadratic within beta, then linear."""
    size = difference.abs()
    return torch.where(size < beta, 0.5 * difference.square() / beta, size - 0.5 * beta)


def ijepa(predictions, wanted):
    """Assran et al. 2023, arXiv:2301.08243, and its code: smooth L1 to the teacher's tokens, each layer-normed.

    predictions, wanted: equally long lists of vectors, one a patch to predict.
    """
    errors = [smooth_l1(p - layer_normed(t)).sum() / len(t) for p, t in zip(predictions, wanted, strict=True)]
    return sum(errors) / len(errors)


def fourier(plane):
    """The orthonormal discrete Fourier transform of (h, w), by its matrix."""

    def matrix(count):
        steps = torch.arange(count, dtype=torch.float64)
        angles = -2 * math.pi * torch.outer(steps, steps) / count
        return torch.complex(angles.cos(), angles.sin()) / math.sqrt(count)

    rows, columns = matrix(plane.shape[0]), matrix(plane.shape[1])
    return rows @ plane.to(torch.complex128) @ columns.T


def usfm_spatial(predictions, images, masks):
    """sum |x - x'| m / (sum m C + 1e-5); images (C, h, w), masks (h, w), true where pixels are hidden."""
    error, count = 0.0, 0
    for said, image, mask in zip(predictions, images, masks, strict=True):
        error = error + ((said - image).abs() * mask).sum()
        count += int(mask.sum()) * len(image)
    return error / (count + 1e-5)


def usfm_frequency(predictions, images, masks, alpha=1.0):
    """Li et al. 2023 (A2MIM), arXiv:2205.13943: focal distance of the batch's mean spectra, by channel.

    Visible pixels enter as half the image and half the prediction, the latter without gradient. The weights are
    log(1 + distance^alpha) over their maximum, without gradient.
    """
    spectra = []
    for c in range(len(images[0])):
        total = 0.0
        for said, image, mask in zip(predictions, images, masks, strict=True):
            mixed = torch.where(mask, said[c], 0.5 * said[c].detach() + 0.5 * image[c])
            total = total + fourier(mixed) - fourier(image[c])
        spectra.append(total / len(images))
    squares = torch.stack([delta.real.square() + delta.imag.square() for delta in spectra])
    weights = (1 + squares.sqrt() ** alpha).log().detach()
    return (weights / weights.max() * squares).mean()


def usfm(predictions, images, masks, weight=0.1):
    """Jiao et al. 2024 (Medical Image Analysis 96:103202) with A2MIM's frequency loss, at its weight."""
    spatial = usfm_spatial(predictions, images, masks)
    return spatial + weight * usfm_frequency(predictions, images, masks)
