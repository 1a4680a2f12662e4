"""``zoo export``: what the ONNX file computes, what stands beside it, and what is refused."""

import hashlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from models import make_convnet, make_timm

import zoo
import zoo.cli
import zoo.graph
from zoo.card import Card
from zoo.errors import Exit, UsageError
from zoo.export import Exported, export
from zoo.files import sha256_of
from zoo.folder import load_model, save_model
from zoo.graph import read
from zoo.parity import TOLERANCE
from zoo.vit import ViTConfig, build_vit

CONFIG = ViTConfig(width=24, depth=2, heads=3, patch=8, image_size=32)
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def make_student(folder: Path, seed: int = 3) -> Path:
    """A ViT trained up to the first of its two blocks, says its card."""
    card = Card(name=folder.name, method="none", heads=3, last_trained_block=1)
    save_model(folder, CONFIG, build_vit(CONFIG, seed=seed).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    return {
        "student": make_student(top / "student"),
        "convnet": make_convnet(top / "convnet", stride=16),
        "classifier": make_timm(
            top / "classifier", "vit_tiny_patch16_224", num_classes=7, reg_tokens=2, **SMALL
        ),
    }


@pytest.fixture(scope="module")
def exports(
    models: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exported]:
    out = tmp_path_factory.mktemp("onnx")
    return {
        name: export(str(folder), data=photos, out=out, images=11)
        for name, folder in models.items()
    }


@pytest.fixture(scope="module")
def inputs(photos: Path, models: dict[str, Path]) -> torch.Tensor:
    """Seven images: a size of batch that neither the exporter nor the comparison has seen."""
    transform = zoo.transform(models["student"])
    return torch.stack([transform(path) for path in sorted(photos.rglob("*.jpg"))[3:10]])


def run_file(exported: Exported, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(str(exported.file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {
        name: torch.from_numpy(found)
        for name, found in zip(names, session.run(names, {"images": inputs.numpy()}), strict=True)
    }


def require_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=2e-5 * float(wanted.std()), rtol=0)


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        zoo.cli.main(list(words))
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", ["student", "convnet"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_without_a_classifier_it_gives_what_zoo_features_gives(
    name: str,
    batch: int,
    exports: dict[str, Exported],
    models: dict[str, Path],
    inputs: torch.Tensor,
) -> None:
    found = run_file(exports[name], inputs[:batch])
    assert list(found) == ["features", "tokens"]
    require_close(found["features"], zoo.features(models[name], inputs[:batch]))
    require_close(found["tokens"], zoo.features(models[name], inputs[:batch], pooling="tokens"))


def test_a_classifier_gives_timms_logits(
    exports: dict[str, Exported], models: dict[str, Path], inputs: torch.Tensor
) -> None:
    net = timm.create_model(f"local-dir:{models['classifier']}", pretrained=True).eval()
    with torch.no_grad():
        wanted = net(inputs)  # type: ignore[operator]
    assert wanted.std() > 0.1
    found = run_file(exports["classifier"], inputs)
    assert list(found) == ["logits"]
    require_close(found["logits"], wanted)


def test_the_record_tells_what_was_compared(
    exports: dict[str, Exported], models: dict[str, Path], photos: Path
) -> None:
    for name, exported in exports.items():
        record = json.loads(exported.file.with_name(f"{name}.onnx.json").read_text())
        assert record["sha256"] == sha256_of(exported.file)
        assert record["size"] == exported.file.stat().st_size
        assert record["opset"] == 20
        parity = record["parity"]
        assert (parity["images"], parity["batches"]) == (11, [1, 5])
        assert list(parity["outputs"]) == list(record["shapes"])[1:]
        for output in parity["outputs"].values():
            assert 0 < output["relative_difference"] < 0.1 * TOLERANCE
            assert output["max_difference"] >= output["mean_difference"] > 0
            assert output["least_cosine"] > 1 - 1e-9
        agreements = (parity["top1_agreement"], parity["nearest_neighbour_agreement"])
        assert agreements == ((1.0, None) if name == "classifier" else (None, 1.0))
        lines = [f"{digest}  {file}\n" for file, digest in record["data"].items()]
        assert len(lines) == 11
        assert len({file.partition("/")[0] for file in record["data"]}) == 3
        assert all(sha256_of(photos / file) == digest for file, digest in record["data"].items())
        assert record["data_fingerprint"] == hashlib.sha256("".join(lines).encode()).hexdigest()
        assert record["versions"]["onnxruntime"] == onnxruntime.__version__
        assert record["model"]["model_digest"] == read(str(models[name])).digest


def test_the_file_says_how_it_is_used(
    exports: dict[str, Exported], models: dict[str, Path]
) -> None:
    proto = onnx.load(exports["student"].file)
    said = {entry.key: entry.value for entry in proto.metadata_props}
    preprocess = zoo.transform(models["student"]).preprocess
    assert said["tinyzoo.model"] == "student"
    assert said["tinyzoo.model_digest"] == load_model(models["student"]).digest
    assert said["tinyzoo.license"] == "not stated"
    assert (said["tinyzoo.image_size"], said["tinyzoo.resize_shorter_side"]) == ("32", "36")
    assert tuple(json.loads(said["tinyzoo.mean"])) == preprocess.mean
    assert tuple(json.loads(said["tinyzoo.std"])) == preprocess.std
    assert "bicubic" in said["tinyzoo.interpolation"]
    assert {key.partition(".")[0] for key in said} == {"tinyzoo"}
    assert exports["student"].record.shapes == {
        "images": ["batch", 3, 32, 32],
        "features": ["batch", 24],
        "tokens": ["batch", 17, 24],
    }


def test_no_file_tells_of_this_machine(exports: dict[str, Exported], photos: Path) -> None:
    assert len(list(exports["student"].file.parent.iterdir())) == 2 * len(exports)
    for exported in exports.values():
        for file in (exported.file, exported.file.with_name(f"{exported.file.name}.json")):
            content = file.read_bytes()
            for path in (str(zoo.__path__[0]), timm.__path__[0], str(photos), "site-packages"):
                assert path.encode() not in content


def test_the_docs_program_runs(
    exports: dict[str, Exported],
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = re.findall(r"```python\n(import json.*?)```", DOCS.read_text(), re.DOTALL)[0]
    (tmp_path / "models").mkdir()
    file = re.findall(r'"(models/.*\.onnx)"', program)[0]
    (tmp_path / file).write_bytes(exports["student"].file.read_bytes())
    for name, source in zip(("cat.jpg", "dog.jpg"), sorted(photos.rglob("*.jpg")), strict=False):
        (tmp_path / name).write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)
    found = torch.from_numpy(names["features"])
    wanted = zoo.features(models["student"], [tmp_path / "cat.jpg", tmp_path / "dog.jpg"])
    assert found.shape == (2, 24)
    # Pillow's resize is within two levels of torchvision's.
    assert torch.cosine_similarity(found, wanted).min() > 0.999
    assert torch.cosine_similarity(found, wanted.flip(0)).max() < 0.999


def _states(folder: Path) -> dict[str, tuple[int, ...]]:
    states = {path.name: path.stat() for path in folder.iterdir()}
    return {n: (s.st_mtime_ns, s.st_size, s.st_ino, s.st_mode) for n, s in states.items()}


@pytest.fixture
def copied(exports: dict[str, Exported], tmp_path: Path) -> Path:
    """A folder that holds the student's file and record."""
    file = exports["student"].file
    for source in (file, file.with_name(f"{file.name}.json")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    return tmp_path


def test_the_same_again_changes_nothing(
    copied: Path,
    models: dict[str, Path],
    exports: dict[str, Exported],
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)
    before = _states(copied)
    for out in (copied, copied / "student.onnx"):
        again = export(str(models["student"]), data=photos, out=out, images=11)
        assert (again.present, again.file) == (True, copied / "student.onnx")
        assert again.record == exports["student"].record
        assert "already there" in again.text()
    with pytest.raises(UsageError, match="compared on other images"):
        export(str(models["student"]), data=photos, out=copied, images=7)
    assert _states(copied) == before


OTHER_THINGS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "another opset": (lambda folder: None, {"opset": 19}, "another model or opset"),
    "damaged": (lambda f: (f / "student.onnx").write_bytes(b"x"), {}, "are not those of"),
    "no record": (lambda f: (f / "student.onnx.json").unlink(), {}, "no student.onnx.json"),
    "no JSON": (lambda f: (f / "student.onnx.json").write_text("x"), {}, "no record of an export"),
    "JSON": (lambda f: (f / "student.onnx.json").write_text("{}"), {}, "no record of an export"),
    "only another's JSON": (
        lambda f: [(f / "student.onnx").unlink(), (f / "student.onnx.json").write_text("{}")],
        {},
        "no record of an export",
    ),
    "a folder": (
        lambda f: [(f / "student.onnx").unlink(), (f / "student.onnx").mkdir()],
        {},
        "are not those of",
    ),
}


@pytest.mark.parametrize(
    ("change", "options", "hint"), OTHER_THINGS.values(), ids=OTHER_THINGS.keys()
)
def test_something_else_is_never_overwritten(
    change: Callable[[Path], Any],
    options: dict[str, Any],
    hint: str,
    copied: Path,
    models: dict[str, Path],
    photos: Path,
) -> None:
    change(copied)
    before = _states(copied)
    with pytest.raises(UsageError, match=hint) as caught:
        export(str(models["student"]), data=photos, out=copied, **options)
    assert "--out" in caught.value.fix
    assert _states(copied) == before


def test_another_model_does_not_take_its_place(
    copied: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_student(tmp_path_factory.mktemp("other") / "student", seed=4)
    with pytest.raises(UsageError, match="another model or opset"):
        export(str(other), data=photos, out=copied)


def test_the_verb(
    copied: Path,
    models: dict[str, Path],
    exports: dict[str, Exported],
    photos: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One that was killed between record and file is done again; nothing but our lines is shown."""
    (copied / "student.onnx").unlink()
    dead = copied / ".tmp-4194999-student.onnx"
    stranger = copied / ".tmp-4194999-other"
    dead.touch()
    stranger.touch()
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    before = [(log.level, list(log.handlers), log.propagate, log.disabled) for log in loggers]
    filters, disabled = list(warnings.filters), logging.root.manager.disable
    words = ("export", str(models["student"]), "--data", str(photos), "--out", str(copied))
    assert code_of(*words, "--images", "11", "--json") == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    said = json.loads(shown.out)
    assert (said["file"], said["present"]) == (str(copied / "student.onnx"), False)
    assert said["record"] == json.loads((copied / "student.onnx.json").read_text())
    assert said["record"]["sha256"] == exports["student"].record.sha256  # to the byte
    assert not dead.exists()
    assert stranger.exists()
    after = [(log.level, list(log.handlers), log.propagate, log.disabled) for log in loggers]
    assert (after, warnings.filters, logging.root.manager.disable) == (before, filters, disabled)
    assert code_of(*words, "--images", "11") == 0
    shown = capfd.readouterr()
    assert "gives:   features (batch, 24), tokens (batch, 17, 24)" in shown.out
    assert "already there" in shown.out
    assert max(map(len, shown.out.replace(str(copied), "").splitlines())) <= 100
    assert shown.err == ""


def _other_weights(proto: onnx.ModelProto) -> None:
    tensor = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.raw_data = (1.01 * onnx.numpy_helper.to_array(tensor)).tobytes()


def _fixed_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def _two_outputs_of_one(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].output[0] = proto.graph.node[0].output[0]


TAMPERED: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "other weights": (_other_weights, "differ from the network's by up to"),
    "a fixed batch": (_fixed_batch, "images is (2, 3, 32, 32): not the batch alone is free"),
    "an older opset": (lambda proto: setattr(proto.opset_import[0], "version", 18), "has opset"),
    "no graph": (_two_outputs_of_one, "the checker refuses it"),
}


@pytest.mark.parametrize(("change", "hint"), TAMPERED.values(), ids=TAMPERED.keys())
def test_a_file_that_is_not_the_network_is_not_kept(
    change: Callable[[onnx.ModelProto], Any],
    hint: str,
    exports: dict[str, Exported],
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    proto = onnx.load(exports["student"].file)
    change(proto)
    made = SimpleNamespace(model_proto=proto)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: made)
    out = tmp_path / "new" / "student.onnx"
    words = ("export", str(models["student"]), "--data", str(photos), "--out", str(out))
    assert code_of(*words) == Exit.INTEGRITY
    shown = capfd.readouterr()
    assert hint in shown.err
    assert len(shown.err.splitlines()) == 3
    assert not list(out.parent.iterdir())


def test_what_does_not_fit_one_file_is_refused(
    models: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.graph, "MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match="one ONNX file holds"):
        export(str(models["student"]), data=photos, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_usage(
    models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(6):
        (bad / f"{i}.jpg").write_bytes(b"\xff\xd8\xff")
    model, out = str(models["student"]), ("--out", str(tmp_path / "out"))
    cases: list[tuple[list[str], int, str]] = [
        ([], Exit.USAGE, "kept only if it agrees"),
        (["--data", str(photos), "--format", "tflite"], Exit.USAGE, "choose onnx"),
        (["--data", str(photos), "--opset", "17"], Exit.USAGE, "choose 18 … 23"),
        (["--data", str(photos), "--images", "5"], Exit.USAGE, "choose 6 or more"),
        (["--data", str(tmp_path / "none")], Exit.DATA, "no such folder"),
        (["--data", str(models["student"])], Exit.DATA, "0 images (JPEG, PNG, WebP)"),
        (["--data", str(bad)], Exit.DATA, "0.jpg"),
    ]
    for words, code, hint in cases:
        assert code_of("export", model, *out, *words) == code, words
        shown = capsys.readouterr()
        assert hint in shown.err
        assert not shown.out
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert code_of("export", model, "--data", str(photos), *out) == Exit.USAGE
    assert "pip install 'tinyzoo[onnx]'" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
