"""TinyMIM ViT-B/16 from MAE ViT-L/16 on ImageNet-1K: first link of the chain L → B → S → T.

    zoo pretrain tinymim-vit-b data.source=folder:/data/imagenet/train

The teacher comes from the Hub.  Paper (Table 3): 300 epochs, 85.0 % top-1 after fine-tuning.
Hardware, hours and score of ours: not run.
"""

from pretrain.data import Data
from pretrain.loop import Training
from pretrain.methods.tinymim import TinyMIM
from pretrain.optim import Optim
from pretrain.recipe import Recipe
from pretrain.teachers.vit import ViTTeacher
from zoo.vit import ViTConfig


def tinymim_vit_b() -> Recipe:
    return Recipe(
        name="tinymim-vit-b",
        student=ViTConfig(width=768, depth=12, heads=12, patch=16, image_size=224),
        method=TinyMIM(
            teacher=ViTTeacher(source="hf-hub:timm/vit_large_patch16_224.mae", block=18),
            drop_path=0.1,
            jitter=(0.4, 0.4, 0.4),
        ),
        data=Data(source="folder:imagenet/train", crop_scale=(0.2, 1.0)),
        training=Training(
            epochs=300,
            warmup_epochs=15,
            global_batch=4096,
            rank_batch=128,
            optim=Optim(lr_per_256=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05),
        ),
    )
