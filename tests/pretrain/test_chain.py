"""The chain L → B → S → T in small: each student is the next one's teacher."""

import json
from pathlib import Path

import timm
import torch
from runs import TINY, TINY_MAE, words, zoo
from timm.models.vision_transformer import VisionTransformer

from zoo.folder import load_model


def card(export: Path) -> dict:
    return json.loads((export / "zoo.json").read_bytes())


def features(export: Path, images: torch.Tensor) -> torch.Tensor:
    """What anyone with timm gets."""
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    assert isinstance(model, VisionTransformer)
    with torch.no_grad():
        return model.forward_features(images)


def test_each_link_learns_from_the_last_ones_export(photos: Path, tmp_path: Path) -> None:
    large = {
        **TINY_MAE,
        "student.width": "48",
        "student.heads": "6",
        "training.steps": "6",
    }
    assert zoo(words("mae-vit-b", photos, tmp_path / "l", large)) == 0
    # Widths and heads of each student; the relation heads stay those of the first teacher.
    links = {"b": ("36", "3", "tinymim-vit-b"), "s": ("24", "2", "tinymim-vit-s")}
    links["t"] = ("12", "1", "tinymim-vit-t")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher = tmp_path / "l" / "export"
    for name, (width, heads, recipe) in links.items():
        settings = {
            **TINY,
            "student.width": width,
            "student.heads": heads,
            "training.steps": "6",
            "method.teacher.source": str(teacher),
            "method.teacher.block": "null",
        }
        assert zoo(words(recipe, photos, tmp_path / name, settings)) == 0
        export = tmp_path / name / "export"
        made, parent = card(export), card(teacher)
        assert made["relation_heads"] == made["teacher"]["relation_heads"] == 6
        assert made["teacher"]["digest"] == parent["digest"]
        assert made["heads"] == int(heads)
        assert made["last_trained_block"] == 2
        found = features(export, images)
        assert found.shape == (2, 17, int(width))
        with torch.no_grad():
            assert torch.equal(found, load_model(export).vit.forward_features(images))
        teacher = export
