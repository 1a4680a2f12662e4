"""The demo's second student: Img2Vec from the demo's convnet, in about a minute on two cores.

    zoo pretrain demo-img2vec data.source=folder:runs/demo/images/train

The teacher is the export of ``zoo pretrain demo-convnet``; ``zoo demo`` runs both.  Score: on the
demo's page.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.img2vec import Img2Vec
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.tokens import TokenTeacher
from zoo.vit import ViTConfig


def demo_img2vec() -> Recipe:
    return Recipe(
        name="demo-img2vec",
        student=ViTConfig(width=64, depth=5, heads=4, patch=8, image_size=48),
        method=Img2Vec(
            teacher=TokenTeacher(source="runs/demo/convnet/export"),
            decoder_width=64,
            decoder_depth=2,
            decoder_heads=4,
            mask_ratio=0.6,
            head_hidden=128,
        ),
        data=Data(source="folder:runs/demo/images/train", crop_scale=(0.7, 1.0), workers=1),
        training=Training(
            epochs=1,
            warmup_epochs=0,
            steps=400,
            warmup_steps=40,
            global_batch=64,
            rank_batch=64,
            optim=Optim(lr_per_256=1.6e-2, betas=(0.9, 0.95), weight_decay=0.05),
            log_every_steps=10,
            save_every_steps=200,
        ),
    )
