"""The demo's convnet: a small ResNet that SimCLR trains, the teacher of the demo's Img2Vec.

    zoo pretrain demo-convnet data.source=folder:runs/demo/images/train

Self-supervised: it never sees a label.  Half of its views have no colour, because the drawn images
vary freely in it.  ``zoo demo`` runs it.  Score: on the demo's page.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.simclr import SimCLR
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from zoo.convnet import ConvnetConfig


def demo_convnet() -> Recipe:
    return Recipe(
        name="demo-convnet",
        student=ConvnetConfig(
            architecture="resnet18",
            channels=(32, 64, 128, 128),
            layers=(1, 1, 1, 1),
            image_size=48,
        ),
        method=SimCLR(
            temperature=0.2,
            projection_width=64,
            stride=16,
            least_side=0.7,
            jitter=(0.4, 0.4, 0.4),
            grey=0.5,
        ),
        data=Data(source="folder:runs/demo/images/train", crop_scale=(0.7, 1.0), workers=1),
        training=Training(
            epochs=1,
            warmup_epochs=0,
            steps=400,
            warmup_steps=40,
            global_batch=64,
            rank_batch=64,
            optim=Optim(lr_per_256=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
            log_every_steps=10,
            save_every_steps=200,
        ),
    )
