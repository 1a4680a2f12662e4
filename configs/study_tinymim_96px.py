"""A small TinyMIM student for 96 px photographs, on a CPU in minutes.

    zoo pretrain study-tinymim-96px data.source=folder:/data/imagenette96/train

The teacher is the export of ``zoo pretrain study-mae-96px``.  Figures as seen, with machine and
date: docs/studies.md.
"""

from pretrain.data import Data
from pretrain.live import Signal
from pretrain.loop import Training
from pretrain.methods.tinymim import TinyMIM
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.vit import ViTTeacher
from zoo.vit import ViTConfig


def study_tinymim_96px() -> Recipe:
    return Recipe(
        name="study-tinymim-96px",
        student=ViTConfig(width=96, depth=6, heads=3, patch=12, image_size=96),
        method=TinyMIM(
            teacher=ViTTeacher(source="runs/study-mae-96px/export", block=6),
            drop_path=0.0,
            jitter=(0.4, 0.4, 0.4),
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
