"""Fine-tuning of ViT-S/16 on ImageNet-1K by MAE's recipe.

    zoo pretrain finetune-in1k-vit-s data.source=folder:DIR/train data.validation=folder:DIR/val

No paper gives MAE's or TinyMIM's figures for this size (TinyMIM's author speaks of a higher
learning rate and a larger batch): these are ViT-B's.  ``ibot`` has the epochs
and the layer decay that iBOT fine-tunes its ViT-S with.  TinyMIM's paper: 83.0 %.  Hardware, hours
and score here: not run.
"""

from eval.finetune import Finetune
from pretrain.augment import Augment
from pretrain.data import Data
from pretrain.loop import Training
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig

NAMED = {
    "ibot": ["training.epochs=200", "method.layer_decay=0.75"],
}


def finetune_in1k_vit_s() -> Recipe:
    return Recipe(
        name="finetune-in1k-vit-s",
        student=ViTConfig(width=384, depth=12, heads=6, patch=16, image_size=224),
        method=Finetune(
            init="runs/tinymim-vit-s/export",
            classes=1000,
            layer_decay=0.65,
            drop_path=0.1,
            mixup=0.8,
            cutmix=1.0,
            smoothing=0.1,
            erase=0.25,
        ),
        data=Data(
            source="folder:imagenet/train",
            validation="folder:imagenet/val",
            crop_scale=(0.08, 1.0),
            augment=Augment(policy="rand-m9-mstd0.5-inc1"),
            workers=12,
        ),
        training=Training(
            epochs=100,
            warmup_epochs=5,
            global_batch=1024,
            rank_batch=256,
            optim=Optim(lr_per_256=5e-4, min_lr=1e-6, betas=(0.9, 0.999), weight_decay=0.05),
        ),
    )
