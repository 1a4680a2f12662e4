"""The demo's teacher: a small MAE on drawn images, in about a minute on two cores.

    zoo pretrain demo-teacher data.source=folder:runs/demo/images/train

``zoo demo`` runs it.  Score: on the demo's page.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.mae import MAE
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig


def demo_teacher() -> Recipe:
    return Recipe(
        name="demo-teacher",
        student=ViTConfig(width=128, depth=6, heads=4, patch=8, image_size=48),
        method=MAE(decoder_width=64, decoder_depth=1, decoder_heads=4, mask_ratio=0.75),
        data=Data(source="folder:runs/demo/images/train", crop_scale=(0.7, 1.0), workers=1),
        training=Training(
            epochs=1,
            warmup_epochs=0,
            steps=600,
            warmup_steps=60,
            global_batch=64,
            rank_batch=64,
            optim=Optim(lr_per_256=8e-3, betas=(0.9, 0.95), weight_decay=0.05),
            log_every_steps=10,
            save_every_steps=200,
        ),
    )
