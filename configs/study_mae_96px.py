"""A small MAE teacher for 96 px photographs, on a CPU in minutes.

    zoo pretrain study-mae-96px data.source=folder:/data/imagenette96/train

Figures as seen, with machine and date: docs/studies.md.
"""

from pretrain.data import Data
from pretrain.live import Signal
from pretrain.loop import Training
from pretrain.methods.mae import MAE
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.vit import ViTConfig


def study_mae_96px() -> Recipe:
    return Recipe(
        name="study-mae-96px",
        student=ViTConfig(width=192, depth=8, heads=6, patch=12, image_size=96),
        method=MAE(decoder_width=96, decoder_depth=1, decoder_heads=3, mask_ratio=0.75),
        data=Data(source="folder:imagenette96/train", crop_scale=(0.2, 1.0), workers=1),
        training=Training(
            epochs=12,
            warmup_epochs=1,
            global_batch=128,
            rank_batch=128,
            optim=Optim(lr_per_256=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
            save_every_steps=100,
        ),
        signal=Signal(images=128),
    )
