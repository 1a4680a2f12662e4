"""How long and how strongly to fine-tune on a set of one's own: the recipe that its size suggests.

Few images are seen more often, in smaller batches, and varied less: mixing two of a few dozen
images of a class mostly hides what there is to learn, while on many it keeps the network from
learning them by heart.  Every figure is an override away.
"""

import os
from dataclasses import dataclass

from eval.finetune import Finetune
from pretrain.augment import Augment
from pretrain.data import Data
from pretrain.loop import Training
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig

MOST_RANK_BATCH = 128
"""Images that go through at once, on one rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What goes with so many training images, or more."""

    images: int
    epochs: int
    global_batch: int
    lr: float
    """At its peak, for the head and its norm; below them it decays by layer."""
    mixup: float
    cutmix: float
    erase: float
    policy: str


PLANS = (
    # A few steps an epoch: many epochs, and no mixing.
    Plan(
        images=0,
        epochs=100,
        global_batch=32,
        lr=5e-4,
        mixup=0.0,
        cutmix=0.0,
        erase=0.0,
        policy="rand-m5-mstd0.5-inc1",
    ),
    # Enough to vary strongly; pasting patches still costs more than it gives.
    Plan(
        images=1_000,
        epochs=50,
        global_batch=64,
        lr=1e-3,
        mixup=0.2,
        cutmix=0.0,
        erase=0.0,
        policy="rand-m9-mstd0.5-inc1",
    ),
    # From here on all that MAE does to ImageNet, at a batch that one machine holds.
    Plan(
        images=20_000,
        epochs=50,
        global_batch=256,
        lr=1e-3,
        mixup=0.8,
        cutmix=1.0,
        erase=0.25,
        policy="rand-m9-mstd0.5-inc1",
    ),
    Plan(
        images=200_000,
        epochs=100,
        global_batch=1024,
        lr=2e-3,
        mixup=0.8,
        cutmix=1.0,
        erase=0.25,
        policy="rand-m9-mstd0.5-inc1",
    ),
)

# Width at least → (layer decay, drop path): MAE's of ViT-B, iBOT's of ViT-S, MAE-Lite's of ViT-T.
_BY_WIDTH = {768: (0.65, 0.1), 384: (0.75, 0.1), 0: (0.85, 0.0)}


def plan_for(images: int) -> Plan:
    """The last plan whose number of training images is reached."""
    return [plan for plan in PLANS if plan.images <= images][-1]


def val_share(images: int) -> float:
    """Share to set aside for validation: a fifth of few images, a tenth of many."""
    return 0.2 if images < 10_000 else 0.1


def plan_recipe(
    name: str,
    *,
    student: ViTConfig,
    init: str | None,
    source: str,
    validation: str,
    images: int,
    classes: int,
    new_head: bool = False,
    ranks: int = 1,
) -> Recipe:
    """The recipe for so many training ``images`` of so many ``classes``."""
    plan = plan_for(images)
    batch = plan.global_batch
    while batch > max(2, images // 4):  # four steps an epoch at least
        batch //= 2
    steps_per_epoch = images // batch
    layer_decay, drop_path = next(v for w, v in _BY_WIDTH.items() if student.width >= w)
    return Recipe(
        name=name,
        student=student,
        method=Finetune(
            init=init,
            classes=classes,
            new_head=new_head,
            layer_decay=layer_decay,
            drop_path=drop_path,
            mixup=plan.mixup,
            cutmix=plan.cutmix,
            smoothing=0.1,
            erase=plan.erase,
        ),
        data=Data(
            source=source,
            validation=validation,
            # The crops of pre-training: those of ImageNet's 8 % leave little of a small set.
            crop_scale=(0.08, 1.0) if images >= PLANS[-1].images else (0.2, 1.0),
            augment=Augment(policy=plan.policy),
            workers=min(4, os.cpu_count() or 1),
        ),
        training=Training(
            epochs=plan.epochs,
            warmup_epochs=5,
            global_batch=batch,
            rank_batch=min(max(2, batch // ranks), MOST_RANK_BATCH),
            optim=Optim(
                lr_per_256=plan.lr * 256 / plan.global_batch,
                min_lr=1e-6,
                betas=(0.9, 0.999),
                weight_decay=0.05,
            ),
            # A minute of compiling is more than short runs win by it.
            compile=None if plan.epochs * steps_per_epoch >= 5_000 else False,
            log_every_steps=min(50, max(1, steps_per_epoch // 4)),
            save_every_steps=max(100, steps_per_epoch),
        ),
    )
