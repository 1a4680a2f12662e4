"""The demo's student: TinyMIM from the demo's teacher, in about a minute on two cores.

    zoo pretrain demo-tinymim data.source=folder:runs/demo/images/train

The teacher is the export of ``zoo pretrain demo-teacher``; ``zoo demo`` runs both.  Score: on the
demo's page.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.tinymim import TinyMIM
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.vit import ViTTeacher
from zoo.vit import ViTConfig


def demo_tinymim() -> Recipe:
    return Recipe(
        name="demo-tinymim",
        student=ViTConfig(width=64, depth=5, heads=4, patch=8, image_size=48),
        method=TinyMIM(
            teacher=ViTTeacher(source="runs/demo/teacher/export", block=4),
            drop_path=0.0,
            jitter=(0.4, 0.4, 0.4),
        ),
        data=Data(source="folder:runs/demo/images/train", crop_scale=(0.7, 1.0), workers=1),
        training=Training(
            epochs=1,
            warmup_epochs=0,
            steps=500,
            warmup_steps=50,
            global_batch=64,
            rank_batch=64,
            optim=Optim(lr_per_256=1.6e-2, betas=(0.9, 0.95), weight_decay=0.05),
            log_every_steps=10,
            save_every_steps=250,
        ),
    )
