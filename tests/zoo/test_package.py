"""What a push would publish, and everything that it must not."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import TEACHER, make_convnet
from safetensors.torch import load_file, save_file

from zoo.card import Card, FileRecord, TeacherRecord, read_card
from zoo.errors import Exit, UsageError, ZooError
from zoo.files import sha256_of
from zoo.folder import save_model, verify
from zoo.package import Package, folder_of, packed
from zoo.terms import Terms, terms_of
from zoo.vit import build_vit

TERMS = Terms(repository="me/tiny", license="mit")
TOKEN = "hf_" + "cAnary0123" * 3


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch, settings: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with its export, as ``zoo pretrain`` leaves one."""
    return make_run(tmp_path / "runs" / "tiny")


def make_run(folder: Path, **changes: object) -> Path:
    card = Card(
        name=folder.name,
        method="tinymim",
        heads=TEACHER.heads,
        last_trained_block=TEACHER.depth,
        recipe={"name": "tiny", "data.source": "folder:/home/alice/photos/train"},
        steps=7,
        licenses={"code": "Apache-2.0", "weights": "not stated"},
    )
    weights = build_vit(TEACHER, seed=0).state_dict()
    save_model(folder / "export", TEACHER, weights, replace(card, **changes))  # type: ignore[arg-type]
    (folder / "recipe.json").write_text("{}")
    (folder / "log.jsonl").write_text("never published")
    return folder


def pack(source: Path, terms: Terms = TERMS) -> Package:
    with packed(str(source), terms) as package:
        return package


def refusal(source: Path, terms: Terms = TERMS) -> ZooError:
    with pytest.raises(ZooError) as caught, packed(str(source), terms):
        pytest.fail("it was packed")
    assert TOKEN not in str(caught.value)
    return caught.value


def record_anew(folder: Path) -> None:
    """Make ``zoo.json`` say what is there: a folder that was made wrong, not one that was hurt."""
    card = read_card(folder / "zoo.json")
    files = {
        name: FileRecord(sha256=sha256_of(folder / name), size=(folder / name).stat().st_size)
        for name in card.files
    }
    (folder / "zoo.json").write_text(replace(card, files=files).to_json())


def test_a_package_is_a_true_model_folder_of_its_own(run: Path) -> None:
    before = {p.name: p.read_bytes() for p in (run / "export").iterdir()}
    with packed(str(run), TERMS) as package:
        card = verify(package.folder, quick=False)
        assert card is not None
        assert set(package.files) == {"README.md", "config.json", "model.safetensors", "zoo.json"}
        for name, file in package.files.items():
            assert sha256_of(package.folder / name) == file.sha256
        assert card.digest == read_card(run / "export" / "zoo.json").digest
        assert card.recipe["data.source"] == "folder:train"
        assert card.licenses == {"code": "Apache-2.0", "weights": "mit"}
        layout = json.loads((package.folder / "config.json").read_bytes())
        assert layout["pretrained_cfg"]["license"] == "mit"
        assert layout["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
        assert "/home/alice" not in "".join(
            p.read_text() for p in package.folder.iterdir() if p.suffix != ".safetensors"
        )
    assert not package.folder.exists()
    assert {p.name: p.read_bytes() for p in (run / "export").iterdir()} == before


def test_the_same_model_packs_to_the_same_bytes(run: Path) -> None:
    assert pack(run).files == pack(run).files


def test_the_list_of_files_is_the_publishers_to_read(run: Path) -> None:
    (run / "export" / "LICENSE").write_text("Do as you like.")
    (run / "export" / "images").mkdir()
    (run / "export" / "images" / "curve.svg").write_text("<svg/>")
    package = pack(run)
    for name, file in package.files.items():
        assert name in package.text()
        assert file.sha256[:12] in package.text()
    assert {"LICENSE", "images/curve.svg"} <= set(package.card.files)
    assert "LICENSE" not in " ".join(package.notes)
    assert "LICENSE" in " ".join(pack(make_run(run.parent / "other")).notes)


def test_a_convnet_can_be_packed(tmp_path: Path) -> None:
    package = pack(make_convnet(tmp_path / "net"))
    assert package.card.heads is None


ODD = {
    ".env": "HF_TOKEN=x",
    ".git/config": "",
    "optimizer.safetensors": "",
    "optimizer.pt": "",
    "pytorch_model.bin": "",
    "train.py": "",
    "notes.json": "{}",
    "sub/.hidden.md": "",
    "sub/model.safetensors": "",
    "state": "",
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_file_of_a_model_is_refused_by_name(run: Path, name: str) -> None:
    planted = run / "export" / name
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(ODD[name])
    error = refusal(run)
    assert error.code == Exit.INTEGRITY
    assert f"{name} is no file of a model" in error.where


@pytest.mark.parametrize("name", ["LICENSE", "passwd.txt", "images"])
def test_a_link_is_refused_and_not_followed(run: Path, name: str) -> None:
    (run / "export" / name).symlink_to("/etc/passwd" if name != "images" else "/etc")
    assert f"{name} is a link" in refusal(run).where


def test_what_a_pull_left_behind_is_not_published(run: Path) -> None:
    trees = run / "export" / ".cache" / "huggingface" / "trees"
    trees.mkdir(parents=True)
    (trees / "x.json").write_text("{}")
    assert not [name for name in pack(run).files if "cache" in name]


def test_nan_weights_are_refused(run: Path) -> None:
    path = run / "export" / "model.safetensors"
    weights = load_file(path)
    weights["blocks.1.mlp.fc1.weight"][3, 3] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    record_anew(run / "export")
    error = refusal(run)
    assert error.code == Exit.INTEGRITY
    assert "blocks.1.mlp.fc1.weight" in str(error)


@pytest.mark.parametrize("odd", [{"host": "alice-laptop"}, {"format": f"pt {TOKEN}"}])
def test_words_in_the_header_of_the_weights_are_refused(run: Path, odd: dict) -> None:
    path = run / "export" / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", **odd})
    record_anew(run / "export")
    assert next(iter(odd)) in refusal(run).where


def test_weights_of_another_network_are_refused(run: Path) -> None:
    path = run / "export" / "model.safetensors"
    weights = load_file(path)
    del weights["norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    record_anew(run / "export")
    assert "norm.weight" in str(refusal(run))


def test_preprocessing_that_is_not_stated_is_refused(run: Path) -> None:
    path = run / "export" / "config.json"
    layout = json.loads(path.read_bytes())
    del layout["pretrained_cfg"]["mean"]
    path.write_text(json.dumps(layout))
    record_anew(run / "export")
    assert "mean" in refusal(run).where


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_folder_that_is_not_what_it_says_is_refused(run: Path, name: str) -> None:
    path = run / "export" / name
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    error = refusal(run)
    assert error.code == Exit.INTEGRITY
    assert name in error.where
    assert ("--about" in error.fix) == (name == "README.md")


LEAKS = {
    "a token in my own words": ("about", f"use {TOKEN}"),
    "another token in my own words": ("about", "hf_" + "aB1" * 10),
    "a path in my own words": ("about", "trained on /home/alice/photos"),
    "a key in a text": ("notes.txt", "-----BEGIN PRIVATE KEY-----"),
    "a path in a drawing": ("curve.svg", "<!-- C:\\Users\\alice\\curve.svg -->"),
    "a password in the licence": ("LICENSE", "https://alice:hunter22@example.org"),
}


def test_a_text_in_another_encoding_is_refused(run: Path) -> None:
    (run / "export" / "notes.txt").write_text("plain words", encoding="utf-16")
    assert "notes.txt is not UTF-8" in refusal(run).where


@pytest.mark.parametrize(("place", "text"), LEAKS.values(), ids=LEAKS.keys())
def test_secrets_and_paths_are_refused_with_their_line(run: Path, place: str, text: str) -> None:
    terms = TERMS
    if place == "about":
        terms = replace(TERMS, about=f"Fine words.\n\n{text}")
    else:
        (run / "export" / place).write_text(f"first\n{text}\n")
    error = refusal(run, terms)
    assert error.code == Exit.INTEGRITY
    assert ("README.md" if place == "about" else f"{place}, line 2") in error.where


@pytest.mark.parametrize(
    "odd",
    [
        {"environment": {"home": "/root/x/y"}},
        {"environment": {"motto": "first\n/home/alice/x"}},
        {"environment": {f"first\n{TOKEN}": "x"}},
        {"code_version": TOKEN},
    ],
)
def test_a_record_that_tells_too_much_is_refused(tmp_path: Path, odd: dict) -> None:
    assert "zoo.json" in refusal(make_run(tmp_path / "runs" / "x", **odd)).where


def test_a_teachers_licence_stands_against_it_until_the_holder_says_so(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "runs" / "x",
        licenses={
            "weights": "not stated",
            "teacher mae-vit-b": "cc-by-nc-4.0",
            "teacher far": "mit",
        },
    )
    error = refusal(run)
    assert error.code == Exit.INTEGRITY
    assert "teacher mae-vit-b (cc-by-nc-4.0)" in error.where
    assert pack(run, replace(TERMS, license="cc-by-nc-4.0")).license == "cc-by-nc-4.0"
    assert pack(run, replace(TERMS, acknowledged=True)).license == "mit"


def test_imported_weights_keep_the_licence_of_their_file(tmp_path: Path) -> None:
    source = {"file": "mae.pth", "sha256": "ab" * 32, "format": "MAE"}
    licenses = {"code": "CC-BY-NC-4.0", "weights": "CC-BY-NC-4.0"}
    run = make_run(tmp_path / "runs" / "x", source=source, licenses=licenses)
    assert "the file mae.pth" in refusal(run).where
    assert pack(run, replace(TERMS, license=None)).license == "CC-BY-NC-4.0"
    run = make_run(tmp_path / "runs" / "y", source=source, licenses={"weights": "none stated"})
    assert "nobody has said" in refusal(run).where


def test_a_licence_has_to_be_stated_by_somebody(run: Path) -> None:
    error = refusal(run, replace(TERMS, license=None))
    assert error.code == Exit.USAGE
    assert "--license" in error.fix


def test_a_teacher_of_the_hub_is_the_base_model(tmp_path: Path) -> None:
    teacher = TeacherRecord(name="timm/vit_base", digest="ab" * 32, block=2, license="mit")
    run = make_run(tmp_path / "runs" / "x", teacher=teacher)
    with packed(str(run), TERMS) as package:
        assert "base_model: timm/vit_base\n" in package.page()
    with packed(str(run), replace(TERMS, base_model="me/other")) as package:
        assert "base_model: me/other\n" in package.page()
    here = make_run(tmp_path / "runs" / "y", teacher=replace(teacher, name="mae-vit-b"))
    with packed(str(here), TERMS) as package:
        assert "base_model" not in package.page()


def test_where_a_model_is_looked_for(run: Path, settings: Path) -> None:
    assert folder_of(str(run)) == run / "export"
    assert folder_of(str(run / "export")) == run / "export"
    made = make_run(Path("elsewhere")) / "export"
    Path("models").mkdir()
    made.rename("models/mine")
    assert folder_of("mine") == Path("models/mine")


def test_what_is_no_model_is_said_to_be_none(run: Path, tmp_path: Path) -> None:
    (run / "export" / "zoo.json").unlink()
    assert "no record" in refusal(run).what
    (run / "export" / "config.json").unlink()
    error = refusal(run)
    assert "no model yet" in error.what
    assert "zoo pretrain" in error.fix
    assert "no run" in refusal(tmp_path / "nothing").what


@pytest.mark.parametrize(
    "words",
    [
        {"repository": "tiny"},
        {"repository": "../../x/y"},
        {"repository": "a/b/c"},
        {"repository": "me/--x"},
        {"datasets": ["a/b/c"]},
        {"datasets": ["../x"]},
        {"base_model": "/home/alice/runs"},
        {"license_": "mit\nbase_model: x"},
        {"license_": ""},
        {"about": Path("not-there.md")},
    ],
)
def test_words_that_cannot_be_are_refused(words: dict) -> None:
    with pytest.raises(UsageError):
        terms_of(**{"repository": "me/tiny", **words})


def test_another_file_system_is_no_obstacle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    linked = pack(run).files
    monkeypatch.setattr(os, "link", no_links)
    assert pack(run).files == linked


def test_an_error_leaves_nothing_in_the_temporary_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "tinyzoo" / "push"
    (place / ".tmp-999999999-killed").mkdir(parents=True)
    refusal(run, replace(TERMS, about="see /home/alice/x"))
    assert list(place.iterdir()) == []


def test_a_model_that_timm_does_not_load_is_refused(run: Path) -> None:
    path = run / "export" / "model.safetensors"
    weights = {**load_file(path), "head.weight": torch.zeros(3, TEACHER.width)}
    save_file({**weights, "head.bias": torch.zeros(3)}, path, metadata={"format": "pt"})
    record_anew(run / "export")
    error = refusal(run)
    assert "timm does not load" in error.what
    assert "head.bias" in error.where


def test_what_git_keeps_beside_a_model_is_left_out(run: Path) -> None:
    (run / "export" / ".gitattributes").write_text("* text\n")
    assert ".gitattributes" not in pack(run).files


def test_scores_that_were_published_before_are_not_lost(run: Path, tmp_path: Path) -> None:
    digest = read_card(run / "export" / "zoo.json").digest
    score = {"protocol": "knn@1", "metric": "top-1", "value": 61.0, "standard_error": 0.5}
    evidence = {"samples": 9, "data": "photos", "data_fingerprint": "ab", "model_digest": digest}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "knn.json").write_text(json.dumps({**score, **evidence}))
    (tmp_path / "results" / "odd.json").write_text("{")
    with packed(str(run), replace(TERMS, results=tmp_path / "results")) as package:
        assert "odd.json is no result" in package.notes[0]
        copy = shutil.copytree(package.folder, tmp_path / "copy")
    assert [score.value for score in pack(copy).card.scores] == [61.0]
