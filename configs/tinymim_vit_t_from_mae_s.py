"""TinyMIM ViT-T/16 straight from MAE ViT-S/16 on ImageNet-1K, without the chain.

    zoo pretrain tinymim-vit-t-from-mae-s data.source=folder:/data/imagenet/train

The teacher is the export of ``zoo pretrain mae-vit-s``.  Paper (Table 11): 74.1 % top-1 after 100
epochs, where this recipe has 300, and fine-tuning.
Hardware, hours and score of ours: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.tinymim import TinyMIM
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.vit import ViTTeacher
from zoo.vit import ViTConfig


def tinymim_vit_t_from_mae_s() -> Recipe:
    return Recipe(
        name="tinymim-vit-t-from-mae-s",
        student=ViTConfig(width=192, depth=12, heads=3, patch=16, image_size=224),
        method=TinyMIM(
            teacher=ViTTeacher(source="runs/mae-vit-s/export"),
            drop_path=0.1,
            jitter=(0.4, 0.4, 0.4),
        ),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=300,
            warmup_epochs=15,
            global_batch=4096,
            rank_batch=256,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
