"""The smallest form of every method, from the project's own parts, in float64: what the twins are compared with."""

from dataclasses import dataclass

import torch

from reference import siamese, twins
from reference.twins import PEAK
from ussl.method import Method
from ussl.parts import Masking, Objective, Optimizer, Student
from ussl_plugins.augmentations.crop import Crop
from ussl_plugins.augmentations.deblur import Deblur
from ussl_plugins.augmentations.dino import DINO as MultiCrop
from ussl_plugins.augmentations.mocov3 import MoCoV3 as UnlikeViews
from ussl_plugins.augmentations.simclr import SimCLR as LikeViews
from ussl_plugins.encoders.beit import BeitEncoder
from ussl_plugins.encoders.vit import VisionTransformer
from ussl_plugins.heads.mlp import Mlp
from ussl_plugins.heads.prototypes import Prototypes
from ussl_plugins.maskings.block import BlockMasking
from ussl_plugins.maskings.random import RandomMasking
from ussl_plugins.maskings.usfm import UsfmMasking
from ussl_plugins.objectives.dino import Dino
from ussl_plugins.objectives.ibot import Ibot
from ussl_plugins.objectives.ijepa import Ijepa, IjepaMasking
from ussl_plugins.objectives.masked_prediction import MaskedPrediction
from ussl_plugins.objectives.mocov3 import MoCoV3
from ussl_plugins.objectives.simclr import SimCLR
from ussl_plugins.objectives.usfm import Restoration
from ussl_plugins.optimizers.adamw import AdamW
from ussl_plugins.optimizers.lars import Lars
from ussl_plugins.targets.ema import EmaTarget
from ussl_plugins.targets.pixels import PixelTarget
from ussl_plugins.targets.timm import TimmTarget

TINY = {"width": 16, "depth": 2, "heads": 2}
EPOCHS = 5.0
BASE = 64 * PEAK  # for a batch of 4
ADAMW = {"base_learning_rate": BASE, "warmup": 0.3}
DINO = {"schedule": "cosine_dino", "min_learning_rate": 1e-6, "weight_decay": 0.04, "weight_decay_end": 0.4}
DINO_OPTIMIZER = {**ADAMW, **DINO, "betas": (0.9, 0.999), "clip": 0.05, "clip_per": "parameter"}
HEAD = {"prototypes": 12, "hidden": 10, "bottleneck": 6}
TEMPERATURE = {
    "teacher_temperature": 0.07,
    "teacher_temperature_start": 0.04,
    "teacher_temperature_warmup_epochs": 3,
}


@dataclass
class Case:
    """A method, how it is updated, and its twin's class."""

    method: Method
    optimizer: Optimizer
    twin: type[twins.Twin]


def mae() -> Case:
    method = assembled(
        Crop(size=16), vit(), RandomMasking(), lambda s: PixelTarget(s, norm=True), decoder(MaskedPrediction)
    )
    return Case(method, AdamW(**ADAMW), twins.Mae)


def urfm() -> Case:
    """A frozen transformer of 64 channels, with random weights, is the teacher."""

    def target(student):
        return TimmTarget(student, model="test_vit", pretrained=False)

    student = vit(patch=16, image_size=64)
    method = assembled(Crop(size=64), student, RandomMasking(), target, decoder(MaskedPrediction))
    return Case(method, AdamW(**ADAMW), twins.Urfm)


def deblur_mim() -> Case:
    method = assembled(
        Deblur(size=16),
        vit(),
        RandomMasking(predict="all"),
        lambda s: PixelTarget(s, norm=False),
        decoder(MaskedPrediction),
    )
    return Case(method, AdamW(**ADAMW), twins.Deblur)


def usfm() -> Case:
    encoder = BeitEncoder(**TINY, patch=4, image_size=16, shared_positions=True)
    method = assembled(
        Crop(size=16),
        Student(encoder),
        UsfmMasking(cell=8, spatial_ratio=0.5, frequency_ratio=0.5),
        lambda s: PixelTarget(s, norm=False),
        Restoration,
    )
    rule = {"schedule": "steps", "milestones": (0.7,), "warmup_learning_rate": BASE / 5, "no_decay": "tokens"}
    rule = {**ADAMW, **rule, "base_learning_rate": 2 * BASE, "reference_batch": 512}
    return Case(method, AdamW(**rule, betas=(0.9, 0.999), clip=0.5), twins.Usfm)


def simclr() -> Case:
    student = vit(head=lambda e: Mlp(e, layers=2, hidden=12, out=8, last="scale"))
    method = assembled(LikeViews(size=16), student, None, None, SimCLR)
    rule = Lars(base_learning_rate=0.01, scaling="sqrt", weight_decay=1e-2, trust=0.02, warmup=0.3)
    return Case(method, rule, siamese.SimCLR)


def mocov3() -> Case:
    student = vit(
        head=lambda e: Mlp(e, layers=3, hidden=12, out=8, last="plain"),
        joined=False,
        scheme="mocov3",
        freeze_patches=True,
    )
    method = assembled(
        UnlikeViews(size=16),
        student,
        None,
        lambda s: EmaTarget(s, momentum=0.9, update="before"),
        lambda s, t: MoCoV3(s, t, hidden=12),
    )
    return Case(method, AdamW(**ADAMW, betas=(0.9, 0.999), no_decay="none"), siamese.MoCoV3)


def dino() -> Case:
    student = vit(head=lambda e: Prototypes(e, **HEAD), scheme="dino")
    method = assembled(views(), student, None, follower, lambda s, t: Dino(s, t, **TEMPERATURE))
    return Case(method, AdamW(**DINO_OPTIMIZER), siamese.Dino)


def ibot() -> Case:
    student = vit(
        head=lambda e: Prototypes(e, **HEAD, norm_last_layer=False, patches=True), scheme="dino", mask_token=True
    )
    masking = BlockMasking(ratio=0.4, how="token")
    method = assembled(views(local=1), student, masking, follower, lambda s, t: Ibot(s, t, **TEMPERATURE))
    return Case(method, AdamW(**DINO_OPTIMIZER), siamese.Ibot)


def ijepa() -> Case:
    method = assembled(Crop(size=16), vit(pooling="average"), IjepaMasking(), follower, decoder(Ijepa))
    return Case(method, AdamW(**ADAMW, clip=0.1), siamese.Ijepa)


METHODS = {
    "MAE": mae,
    "URFM": urfm,
    "Deblur-MIM": deblur_mim,
    "USFM": usfm,
    "SimCLR": simclr,
    "MoCo-v3": mocov3,
    "DINO": dino,
    "iBOT": ibot,
    "I-JEPA": ijepa,
}


def vit(head=None, joined=True, **options):
    encoder = VisionTransformer(**{**TINY, "patch": 4, "image_size": 16, **options})
    return Student(encoder, None if head is None else head(encoder), joined)


def views(local=2):
    return MultiCrop(size=16, local_views=local, local_size=8)


def decoder(kind: type[Objective]):
    """An objective with a narrow decoder or predictor."""
    return lambda student, target: kind(student, target, width=8, depth=2, heads=2)


def follower(student):
    """A teacher that has followed another student so far, so that the two cannot be taken for each other."""
    target = EmaTarget(student, momentum=0.9)
    shake(zip(target.teacher.parameters(), student.parameters(), strict=True))
    return target


def assembled(augmentation, student, masking: Masking | None, target, objective) -> Method:
    """The method in float64, every trained weight moved at random, so that no bias is zero and no scale one."""
    shake((p, p) for p in student.parameters())
    target = None if target is None else target(student)
    objective = objective(student, target)
    shake((p, p) for p in objective.parameters())
    return Method(augmentation, student, masking, target, objective).double().train()


@torch.no_grad()
def shake(pairs):
    """Move the first of a pair where the second is trained."""
    for p, trained in pairs:
        if trained.requires_grad:
            p += 0.1 * torch.randn(p.shape)
