"""Small model folders that the tests make for themselves."""

from pathlib import Path

from zoo.card import Card
from zoo.folder import save_model
from zoo.vit import ViTConfig, build_vit

TEACHER = ViTConfig(width=48, depth=2, heads=6, patch=8, image_size=32)


def make_model(
    folder: Path, config: ViTConfig = TEACHER, *, seed: int = 0, relation_heads: int | None = None
) -> Path:
    """A model folder with fresh weights; ``relation_heads`` as a distilled model records them."""
    card = Card(
        name=folder.name,
        method="mae",
        heads=config.heads,
        last_trained_block=config.depth,
        relation_heads=relation_heads,
    )
    save_model(folder, config, build_vit(config, seed=seed).state_dict(), card)
    return folder
