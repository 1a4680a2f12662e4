"""Fine-tuning of ViT-T/16 on ImageNet-1K by MAE's recipe.

    zoo pretrain finetune-in1k-vit-t data.source=folder:DIR/train data.validation=folder:DIR/val

No paper gives MAE's or TinyMIM's figures for this size: these are ViT-B's.  ``deit`` is DeiT-T's
recipe (3 heads, 72.2 %), less its three repeats of each image; ``mae-lite`` took a ViT-T of 12
heads to 78.0 %.  TinyMIM's paper: 75.8 %.  Hardware, hours and score here: not run.
"""

from eval.finetune import Finetune
from pretrain.augment import Augment
from pretrain.data import Data
from pretrain.loop import Training
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig

NAMED = {
    "deit": [
        "training.epochs=300",
        "training.optim.lr_per_256=2.5e-4",
        "training.optim.min_lr=1e-5",
        "method.layer_decay=1.0",
    ],
    "mae-lite": [
        "training.epochs=300",
        "training.optim.lr_per_256=1e-3",
        "method.layer_decay=0.85",
        "method.drop_path=0.0",
        "method.mixup=0.2",
        "method.cutmix=0.0",
        "method.smoothing=0.0",
        "method.erase=0.0",
        "data.augment.policy=rand-m10-mstd0.5-inc1",
    ],
}


def finetune_in1k_vit_t() -> Recipe:
    return Recipe(
        name="finetune-in1k-vit-t",
        student=ViTConfig(width=192, depth=12, heads=3, patch=16, image_size=224),
        method=Finetune(init="runs/tinymim-vit-t/export", classes=1000),  # all else is MAE's
        data=Data(
            source="folder:imagenet/train",
            validation="folder:imagenet/val",
            crop_scale=(0.08, 1.0),
            augment=Augment(policy="rand-m9-mstd0.5-inc1"),
        ),
        training=Training(
            epochs=100,
            warmup_epochs=5,
            global_batch=1024,
            rank_batch=256,
            optim=Optim(lr_per_256=5e-4, min_lr=1e-6, betas=(0.9, 0.999), weight_decay=0.05),
        ),
    )
