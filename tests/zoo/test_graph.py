"""What of a model is exported, and under which name."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from models import make_model, make_timm
from torch import nn

import zoo.graph
from zoo.errors import UsageError
from zoo.graph import read

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize("pool", ["avg", "token"])  # with avg, timm's last norm is another one
def test_a_vit_with_registers_and_no_classifier_gives_timms_tokens(
    pool: str, tmp_path: Path
) -> None:
    shape = {"global_pool": pool, "reg_tokens": 2, **SMALL}
    folder = make_timm(tmp_path / "net", "vit_tiny_patch16_224", num_classes=0, **shape)
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        tokens = net.forward_features(inputs)  # type: ignore[operator]
        if pool == "avg":
            tokens = net.fc_norm(tokens)  # type: ignore[operator]
        readable = read(str(folder))
        features, found = readable.net(inputs)
    assert readable.outputs == ("features", "tokens")
    assert tokens.shape == (7, 1 + 2 + 16, 24)
    assert torch.equal(found, tokens)
    assert torch.equal(features, tokens[:, 3:].mean(1))


class _NotForOnnx(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.linalg.eigvals(images[:, 0]).abs(),)


def test_a_network_that_torch_cannot_export_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    readable = replace(
        read(str(make_model(tmp_path / "net"))), net=_NotForOnnx().eval(), outputs=("logits",)
    )
    with pytest.raises(UsageError, match="torch cannot export this network: ") as caught:
        zoo.graph.write_graph(tmp_path / "x.onnx", readable, 20)
    assert len(str(caught.value).splitlines()) == 3
    assert not any(capfd.readouterr())


def test_a_name_from_the_hub_is_not_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / ("0123456789" * 4)
    make_timm(snapshot, "vit_tiny_patch16_224", num_classes=0, **SMALL)
    monkeypatch.setattr(zoo.graph, "locate", lambda _: snapshot)
    for asked in ("timm/vit_x.y", "hf-hub:timm/vit_x.y@main", "vit_x.y"):
        assert read(asked).name == "vit_x.y"
