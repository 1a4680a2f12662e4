"""A small Img2Vec student for 96 px photographs, on a CPU in minutes.

    zoo pretrain study-img2vec-96px data.source=folder:/data/imagenette96/train

The teacher is the export of ``zoo pretrain study-simclr-96px``: cells of 16 px, two by two patches
each.  Figures as seen, with machine and date: docs/studies.md.
"""

from pretrain.data import Data
from pretrain.live import Signal
from pretrain.loop import Training
from pretrain.methods.img2vec import Img2Vec
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.tokens import TokenTeacher
from zoo.vit import ViTConfig


def study_img2vec_96px() -> Recipe:
    return Recipe(
        name="study-img2vec-96px",
        student=ViTConfig(width=96, depth=6, heads=3, patch=8, image_size=96),
        method=Img2Vec(
            teacher=TokenTeacher(source="runs/study-simclr-96px/export"),
            decoder_width=96,
            decoder_depth=2,
            decoder_heads=3,
            mask_ratio=0.6,
            head_hidden=192,
        ),
        data=Data(source="folder:imagenette96/train", crop_scale=(0.2, 1.0), workers=1),
        training=Training(
            epochs=5,
            warmup_epochs=0.5,
            global_batch=128,
            rank_batch=128,
            optim=Optim(lr_per_256=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
            save_every_steps=100,
        ),
        signal=Signal(images=128),
    )
