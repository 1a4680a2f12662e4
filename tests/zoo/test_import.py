"""``zoo import``: DINO's files become model folders; all else is refused and leaves nothing."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dinofiles import SMALL, WRONG_FILES, WRONG_OBJECTS, Evil, Weights, checkpoint, wrapped
from hypothesis import given
from hypothesis import strategies as st
from imports import found_in, imported, own_folder  # noqa: F401
from safetensors.torch import load_file
from torchvision.models import resnet50

import zoo.cli
from zoo.card import read_card
from zoo.convnet import read_stage
from zoo.errors import DiskError, Exit, IntegrityError, UsageError, ZooError
from zoo.folder import load_convnet, load_model
from zoo.foreign import quarantine, unpickle
from zoo.foreign.dino import backbone_names
from zoo.foreign.formats import EXPECTED, recognise
from zoo.foreign.importer import import_file
from zoo.vit import VIT_T, ViTConfig, build_vit, empty_vit

pytestmark = pytest.mark.usefixtures("own_folder")

real_run = quarantine._run


@pytest.fixture(scope="module")
def resnet() -> torch.nn.Module:
    """torchvision's, with counters and statistics that are not those of a new network."""
    torch.manual_seed(0)
    net = resnet50().eval()
    net.fc = torch.nn.Identity()  # type: ignore[assignment]
    for name, buffer in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.fill_(2**40)
        else:
            buffer.uniform_(0.5, 1.5).sub_(float(name.endswith("running_mean")))
    return net


@pytest.fixture(scope="module")
def vit() -> Weights:
    weights = build_vit(VIT_T, seed=0).state_dict()
    positions = torch.randn(1, 197, 192, generator=torch.Generator().manual_seed(1))
    return {**weights, "pos_embed": positions}


@pytest.fixture(scope="module")
def half(vit: Weights) -> Weights:
    return {name: tensor.half() for name, tensor in vit.items()}


def test_a_resnet_gives_the_numbers_of_torchvision(resnet: Any) -> None:
    weights = resnet.state_dict()
    assert len(weights) == 318
    result = imported(weights, "dino-rn50")
    assert (result.folder, result.tensors) == (Path("models/dino-rn50"), 318)
    assert (result.architecture, result.new) == ("resnet50", True)
    assert result.format == "DINO ResNet-50, backbone file"
    stored = load_file(result.folder / "model.safetensors")
    assert stored.keys() == weights.keys()
    assert all(torch.equal(stored[name], weights[name]) for name in weights)
    assert stored["bn1.num_batches_tracked"] == torch.tensor(2**40)

    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    ours = load_convnet(result.folder, image_size=96)
    theirs = timm.create_model("local-dir:models/dino-rn50", pretrained=True).eval()
    with torch.no_grad():
        stem = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(stem))))
        rounding = 1e-5 * float(expected.max())
        for found in (read_stage(ours.net, images, ours.stage), theirs.forward_features(images)):  # type: ignore[operator]
            torch.testing.assert_close(found, expected, rtol=0, atol=rounding)
    assert expected.std() > 100 * rounding

    whole = checkpoint(wrapped(weights, "module.backbone.", "module.head."), fp16_scaler={"a": 1.0})
    again = imported(whole, "full")
    assert again.digest == result.digest
    assert again.format == "DINO ResNet-50, full checkpoint, its teacher"


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("module.backbone.", "module.head."),
        ("backbone.module.", "head."),
        ("", "head."),
    ],
)
def test_a_checkpoint_gives_its_teacher(vit: Weights, prefix: str, head: str) -> None:
    result = imported(checkpoint(wrapped(vit, prefix, head)))
    model = load_model(result.folder)
    assert model.config == VIT_T
    state = model.vit.state_dict()
    assert all(torch.equal(state[name], vit[name]) for name in vit)
    assert state.keys() == vit.keys()


def test_a_vit_and_what_its_card_says(vit: Weights, tmp_path: Path) -> None:
    result = imported(vit)
    card = read_card(result.folder / "zoo.json")
    assert (card.name, card.method, card.heads, card.last_trained_block) == ("model", "dino", 3, 12)
    assert card.source == {
        "file": "model.pth",
        "sha256": result.source_sha256,
        "format": "DINO ViT of width 192, patch 16, backbone file",
    }
    assert "not checked" in card.licenses["weights"]
    page = (result.folder / "README.md").read_text()
    assert f"`model.pth` (sha256 `{result.source_sha256}`)" in page
    for file in result.folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    theirs = timm.create_model(f"local-dir:{result.folder}", pretrained=True).state_dict()
    assert all(torch.equal(theirs[name], vit[name]) for name in vit)


@pytest.mark.parametrize(("width", "heads", "patch", "grid"), [(384, 6, 8, 28), (768, 12, 16, 5)])
def test_sizes_are_read_and_heads_are_those_of_dino(
    width: int, heads: int, patch: int, grid: int
) -> None:
    config = ViTConfig(width=width, depth=12, heads=heads, patch=patch, image_size=grid * patch)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_vit(config).state_dict().items()}
    found = recognise(found_in(shapes))
    assert found.config == config
    assert found.format == f"DINO ViT of width {width}, patch {patch}, backbone file"


def test_views_and_other_float_types_come_in_right(vit: Weights) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        flat = torch.cat([tensor.flatten() for tensor in vit.values()]).to(dtype)
        parts = flat.split([tensor.numel() for tensor in vit.values()])  # one storage for all
        views = {n: p.view(t.shape) for (n, t), p in zip(vit.items(), parts, strict=True)}
        turned = views["blocks.0.mlp.fc1.weight"].T.contiguous().T
        assert not turned.is_contiguous()
        views["blocks.0.mlp.fc1.weight"] = torch.nn.Parameter(turned)
        result = imported(views, str(dtype).removeprefix("torch."))
        stored = load_file(result.folder / "model.safetensors")
        assert all(torch.equal(stored[n], vit[n].to(dtype).float()) for n in vit)
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


_PART = st.from_regex(r"[a-z_]{1,8}(\.[a-z0-9]{1,3}){0,2}", fullmatch=True)
_OWN = _PART.filter(lambda name: name.split(".")[0] not in {"module", "backbone", "head"})
_ORDERS = ["", "module.", "backbone.", "module.backbone.", "backbone.module."]


@given(names=st.sets(_OWN), prefix=st.sampled_from(_ORDERS))
def test_prefixes_go_in_any_order_and_heads_with_them(names: set[str], prefix: str) -> None:
    heads = {"head.a", "module.head.b.c"}
    found = backbone_names(found_in({}), {prefix + name for name in names} | heads)
    assert found == {name: prefix + name for name in names}


@pytest.mark.parametrize(("make", "hint"), WRONG_OBJECTS.values(), ids=WRONG_OBJECTS.keys())
def test_anything_else_is_refused_and_leaves_nothing(
    make: Callable[[Weights, Any], object], hint: str, half: Weights, resnet: Any
) -> None:
    with pytest.raises(IntegrityError) as caught:
        imported(make(half, resnet))
    assert hint in str(caught.value)
    assert "model.pth" in caught.value.where
    assert caught.value.code == Exit.INTEGRITY
    assert "weights_only" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert sorted(path.name for path in Path().iterdir()) == ["model.pth", "temp"]


@pytest.mark.parametrize(("make", "hint"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_other_files_are_refused(make: Callable[[Path], Any], hint: str) -> None:
    make(Path("file.pth"))
    with pytest.raises(IntegrityError, match=hint):
        import_file(Path("file.pth"), "model", Path("models"))
    assert sorted(path.name for path in Path().iterdir()) == ["file.pth", "temp"]


def test_a_name_in_the_file_is_not_a_path(vit: Weights) -> None:
    with pytest.raises(IntegrityError, match="no weights where"):
        imported({"../../evil": SMALL, **vit})


def test_importing_again_changes_nothing_and_nothing_is_replaced(vit: Weights) -> None:
    first = imported(vit)
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = import_file(Path("model.pth"), "model", Path("models"))
    assert (second.digest, second.new) == (first.digest, False)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times
    for other in ({**vit, "norm.bias": torch.ones(192)}, {"a": SMALL}):
        with pytest.raises(UsageError, match="another model has this name") as caught:
            imported(other)
        assert "--as" in caught.value.fix
    assert read_card(first.folder / "zoo.json").digest == first.digest
    (first.folder / "config.json").write_text("{}")
    torch.save(vit, "model.pth")
    with pytest.raises(IntegrityError, match="already, damaged"):
        import_file(Path("model.pth"), "model", Path("models"))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/a", "-a", ".tmp-1-a", "a b", "nul", "a."]
)
def test_a_name_is_a_plain_name(name: str) -> None:
    torch.save({}, "x.pth")
    with pytest.raises(UsageError, match="not a name for a model"):
        import_file(Path("x.pth"), name, Path("models"))


def test_the_limits_hold_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(*_: object) -> None:
        while True:
            time.process_time()

    monkeypatch.setattr(unpickle, "_read", spin)
    monkeypatch.setattr(quarantine, "CPU_SECONDS", 0)
    with pytest.raises(IntegrityError, match="more processor time"):
        imported({"a": SMALL})
    monkeypatch.setattr(quarantine, "_run", real_run)
    monkeypatch.setattr(quarantine, "WALL_SECONDS", 0.3)
    with pytest.raises(IntegrityError, match=r"longer than 0\.3 s"):
        imported({"a": SMALL})


ENDINGS = {
    "killed": (-signal.SIGKILL, "", IntegrityError, "stopped by SIGKILL"),
    "crashed": (-signal.SIGSEGV, "", IntegrityError, "stopped by SIGSEGV"),
    "cannot run": (1, "", ZooError, "ended with code 1"),
    "silent": (0, "", IntegrityError, "left no report"),
    "no report": (0, "[]", IntegrityError, "left no report"),
    "long report": (0, '{"kind": "' + "a" * 200_000 + '"}', IntegrityError, "left no report"),
    "no space": (0, '{"failure": "space"}', DiskError, "no space left"),
}


@pytest.mark.parametrize(("code", "report", "kind", "hint"), ENDINGS.values(), ids=ENDINGS.keys())
def test_however_the_reader_ends_there_is_one_clear_error(
    code: int, report: str, kind: type[ZooError], hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], folder: Path, seconds: float) -> int:
        (folder / "errors.txt").write_text("Traceback\nthe last line\n")
        if report:
            (folder / "report.json").write_text(report)
        return code

    monkeypatch.setattr(quarantine, "_run", run)
    with pytest.raises(kind, match=hint) as caught:
        imported({"a": SMALL})
    assert type(caught.value) is kind
    assert code != 1 or "the last line" in caught.value.where


def test_the_reader_gets_no_secrets_and_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        given.append(env)
        return subprocess.CompletedProcess(command, 9)

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(quarantine, "_run", real_run)
    with pytest.raises(ZooError, match="code 9"):
        imported({"a": SMALL})
    assert given[0].keys() <= {
        *quarantine._KEPT,
        "PYTHONPATH",
        "OMP_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
    }
    assert not given[0]["CUDA_VISIBLE_DEVICES"]


def _code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main(list(words))
    return int(caught.value.code or 0)


def test_the_verb(
    vit: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quarantine, "_run", real_run)  # as users run it
    torch.save(checkpoint(wrapped(vit, "backbone.")), "dino.pth")
    assert _code_of("import", "dino.pth", "--as", "small", "--json") == Exit.DONE
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == "models/small"
    assert shown["digest"] == load_model(Path("models/small")).digest
    assert shown["tensors"] == 150
    assert _code_of("import", "dino.pth", "--as", "small") == Exit.DONE
    text = capsys.readouterr().out
    assert "models/small  (imported before)" in text
    assert "DINO ViT of width 192, patch 16, full checkpoint, its teacher: 150 tensors" in text
    assert "method.teacher.source=models/small" in text


def test_the_verb_runs_no_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quarantine, "_run", real_run)
    torch.save({"a": Evil()}, "evil.pth")
    assert _code_of("import", "evil.pth", "--as", "evil", "--json") == Exit.INTEGRITY
    shown = capsys.readouterr()
    assert json.loads(shown.out)["code"] == 4
    assert "posix.system" in shown.err
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in Path().iterdir()) == ["evil.pth", "temp"]
    torch.load("evil.pth", weights_only=False)  # the file would have done it
    assert Path("canary").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["nothing.pth", "--as", "a"], "no such file"),
        (["temp", "--as", "a"], "a folder, not a file"),
        (["nothing.pth"], "--as"),
        (["nothing.pth", "--as", "../a"], "not a name"),
    ],
)
def test_wrong_usage(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _code_of("import", *words) == Exit.USAGE
    assert hint in capsys.readouterr().err
    assert not Path("models").exists()


def test_what_would_do_is_always_said() -> None:
    Path("x.pth").write_text("text")
    with pytest.raises(IntegrityError) as caught:
        import_file(Path("x.pth"), "a")
    assert EXPECTED in caught.value.fix
