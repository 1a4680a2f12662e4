"""A small self-supervised convnet for 96 px photographs: the teacher of study-img2vec-96px.

    zoo pretrain study-simclr-96px data.source=folder:/data/imagenette96/train

Figures as seen, with machine and date: docs/studies.md.
"""

from pretrain.data import Data
from pretrain.live import Signal
from pretrain.loop import Training
from pretrain.methods.simclr import SimCLR
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.convnet import ConvnetConfig


def study_simclr_96px() -> Recipe:
    return Recipe(
        name="study-simclr-96px",
        student=ConvnetConfig(
            architecture="resnet18",
            channels=(32, 64, 128, 128),
            layers=(1, 1, 1, 1),
            image_size=96,
        ),
        method=SimCLR(
            temperature=0.2,
            projection_width=128,
            stride=16,
            least_side=0.6,
            jitter=(0.4, 0.4, 0.4),
            grey=0.3,
        ),
        data=Data(source="folder:imagenette96/train", crop_scale=(0.35, 1.0), workers=1),
        training=Training(
            epochs=6,
            warmup_epochs=0.5,
            global_batch=128,
            rank_batch=128,
            optim=Optim(lr_per_256=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
            save_every_steps=100,
        ),
        signal=Signal(images=128),
    )
