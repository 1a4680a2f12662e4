"""Names that lead somewhere, the user's namespace, and the user's catalog over the shipped one."""

import errno
import re
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signed import SIGNER

import zoo.catalog
import zoo.hub
import zoo.settings
from zoo.catalog import Catalog, Pin, add_to_user_catalog, folder_here, load_catalog, resolve
from zoo.entry import Figure, FilePin, Hosted, parse_entry
from zoo.errors import DiskError, UsageError
from zoo.files import is_plain_name
from zoo.hub import locate

SHIPPED = load_catalog()
COMMIT, SHA256 = "a" * 40, "b" * 64
MINE = """
[models.mine]
title = "Mine"
method = "tinymim"
paper = "none"
vit = {width = 192, depth = 12, heads = 3}
parameters = 5_524_416
teacher = "mae-vit-l"
licenses = {code = "Apache-2.0"}
hosted = {repository = "me/mine"}
"""


def overlay(settings: Path, text: str, form: str = "format = 1\n") -> Catalog:
    (settings / "catalog.toml").write_text(form + text)
    return load_catalog()


# ---- Names


NAMESPACES = {
    "environment": ("", "env-org", "env-org"),
    "file": ('namespace = "file-org"', None, "file-org"),
    "environment first": ('namespace = "file-org"', "env-org", "env-org"),
    "empty is not set": ('namespace = "file-org"', "", "file-org"),
}


@pytest.mark.parametrize(("file", "variable", "owner"), NAMESPACES.values(), ids=NAMESPACES.keys())
def test_our_models_are_in_the_namespace(
    file: str, variable: str | None, owner: str, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings / "config.toml").write_text(file)
    if variable is not None:
        monkeypatch.setenv("ZOO_NAMESPACE", variable)
    pin = resolve("tinymim-vit-s")
    assert pin
    assert pin.source == f"{owner}/tinymim-vit-s"
    tagged = resolve("tinymim-vit-s@v1")
    assert tagged
    assert tagged.source == f"{owner}/tinymim-vit-s@v1"
    assert resolve("mae-vit-l") == Pin("timm/vit_large_patch16_224.mae", None, {})


def test_without_a_namespace_the_error_says_what_to_do(settings: Path) -> None:
    for name in ("tinymim-vit-b", "tinymim-vit-s"):
        with pytest.raises(UsageError) as caught:
            resolve(name)
        assert "ZOO_NAMESPACE" in caught.value.fix
        assert str(settings / "config.toml") in caught.value.where
        assert f"zoo pretrain {name}" in caught.value.fix
        file = "zoo import TinyMIM-PT-B.pth --as tinymim-vit-b"
        assert (file in caught.value.fix) == (name == "tinymim-vit-b")


def test_a_foreign_model_is_in_no_namespace(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_NAMESPACE", "org")
    with pytest.raises(UsageError, match="imported") as caught:
        resolve("dino-rn50")
    assert "zoo import dino_resnet50_pretrain.pth --as dino-rn50" in caught.value.fix
    assert "pretrain " not in caught.value.fix


BROKEN_SETTINGS = {
    "a path": ('namespace = "../etc"', "namespace"),
    "a number": ("namespace = 3", "namespace"),
    "a repository": ('namespace = "org/name"', "namespace"),
    "half written": ("namespace = ", "settings cannot be read"),
    "another key": ('namspace = "org"', "namspace"),
}


@pytest.mark.parametrize(("text", "hint"), BROKEN_SETTINGS.values(), ids=BROKEN_SETTINGS.keys())
def test_broken_settings_are_refused(text: str, hint: str, settings: Path) -> None:
    (settings / "config.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve("tinymim-vit-s")
    assert hint in str(caught.value)
    assert str(settings / "config.toml") in caught.value.where
    assert resolve("mae-vit-b")  # needs no namespace


def test_a_folder_here_wins(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("models/tinymim-vit-s")
    folder.mkdir(parents=True)
    assert folder_here("tinymim-vit-s") is None
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(
        zoo.hub, "pull", lambda source, **_: SimpleNamespace(folder=Path("from", source))
    )
    monkeypatch.setenv("ZOO_NAMESPACE", "org")
    assert locate("tinymim-vit-s") == folder
    assert locate("tinymim-vit-s@main") == Path("from/org/tinymim-vit-s@main")
    assert locate("tinymim-vit-b") == Path("from/org/tinymim-vit-b")
    assert locate("mae-vit-l") == Path("from/timm/vit_large_patch16_224.mae")
    with pytest.raises(UsageError, match="imported"):
        locate("dino-rn50")
    with pytest.raises(UsageError, match="no model of this name"):
        locate("mae-vit-x")


def test_a_pin_goes_with_its_commit_only(settings: Path) -> None:
    pin = f'{{repository = "me/mine", commit = "{COMMIT}", '
    pin += f'files = {{"model.safetensors" = {{sha256 = "{SHA256}", size = 9}}}}}}'
    overlay(settings, MINE.replace('{repository = "me/mine"}', pin))
    pinned = Pin("me/mine", COMMIT, {"model.safetensors": FilePin(sha256=SHA256, size=9)})
    assert resolve("mine") == resolve(f"mine@{COMMIT}") == pinned
    assert resolve("mine@main") == Pin("me/mine", "main", {})


names = st.text(min_size=1, max_size=12) | st.text("./\\:@ -_aA0\0\n~$", min_size=1, max_size=12)


@given(names)
def test_only_plain_names_are_names(name: str) -> None:
    plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None
    assert is_plain_name(name) <= plain
    if is_plain_name(name):
        assert Path(name).parts == (name,)
    else:
        assert resolve(name) is None or name.partition("@")[0] in SHIPPED.models
        assert folder_here(name) is None
        with pytest.raises(ValueError):
            parse_entry(name, tomllib.loads(MINE)["models"]["mine"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "con", "a.", "COM1.x", "ä", "a" * 101]
)
def test_names_that_look_harmless(name: str) -> None:
    assert not is_plain_name(name)
    assert resolve(name) is None


# ---- The user's catalog


def test_a_user_adds_and_replaces(settings: Path) -> None:
    pinned = f'[models.mae-vit-l.hosted]\nrepository = "me/copy"\ncommit = "{COMMIT}"\n'
    catalog = overlay(settings, MINE + pinned)
    assert not catalog.problems
    assert [e.name for e in catalog.lineage(catalog.find("mine"))] == ["mine", "mae-vit-l"]
    assert resolve("mae-vit-l") == Pin("me/copy", COMMIT, {})
    assert catalog.models["mae-vit-l"].figures == SHIPPED.models["mae-vit-l"].figures
    assert {k: v for k, v in catalog.models.items() if k not in ("mine", "mae-vit-l")} == {
        k: v for k, v in SHIPPED.models.items() if k != "mae-vit-l"
    }


def test_the_examples_of_the_docs_are_right(settings: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text()
    config, models, pin, signer = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (settings / "config.toml").write_text(config)
    pin = pin.replace("…40 hex digits…", COMMIT).replace("…64 hex digits…", SHA256)
    signer = signer.replace("…", "\n".join(str(SIGNER.public_key).splitlines()[1:-1]))
    catalog = overlay(settings, models + pin + signer, form="")
    assert not catalog.problems
    assert catalog.find("my-vit").state == "hosted"
    assert catalog.find("mae-vit-l").hosted == Hosted(
        repository="timm/vit_large_patch16_224.mae",
        commit=COMMIT,
        files={"model.safetensors": FilePin(sha256=SHA256)},
        signer=SIGNER,
    )
    assert resolve("tinymim-vit-s") == Pin("my-org/tinymim-vit-s", None, {})


BROKEN_FILES = {
    "half written": ("[models.mine", "format = 1\n", "catalog.toml"),
    "no format": (MINE, "", "format"),
    "another format": (MINE, "format = 2\n", "format 1, not 2"),
    "a foreign file": ('[tool.ruff]\nselect = ["A"]', "", "format"),
    "another table": ("[modles.mine]", "format = 1\n", "modles"),
    "no tables": ("models = 3", "format = 1\n", "models"),
    "deep": ("a = " + "[" * 10_000, "format = 1\n", "not readable"),
}


@pytest.mark.parametrize(("text", "form", "hint"), BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_a_broken_file_is_named(text: str, form: str, hint: str, settings: Path) -> None:
    catalog = overlay(settings, text, form)
    assert catalog.models == SHIPPED.models  # to be listed, with a note
    with pytest.raises(UsageError) as caught:  # but not to be taken for what the user meant
        resolve("mae-vit-l")
    assert hint in str(caught.value)
    assert str(settings / "catalog.toml") in caught.value.where
    with pytest.raises(UsageError):
        add_to_user_catalog(SHIPPED.models["mae-vit-l"])
    assert (settings / "catalog.toml").read_text() == form + text
    assert resolve("org/name") is None


def test_bytes_and_folders_are_no_catalogs(settings: Path) -> None:
    (settings / "catalog.toml").write_bytes(b"\xff\xfe\x00")
    assert list(load_catalog().problems) == [""]
    (settings / "catalog.toml").unlink()
    (settings / "catalog.toml").mkdir()
    assert list(load_catalog().problems) == [""]


BROKEN_ENTRIES = {
    "missing key": ('title = "Mine"\n', "", "models.mine.title"),
    "unknown key": ("parameters =", "parametres =", "models.mine.parameters"),
    "wrong type": ("5_524_416", '"many"', "models.mine.parameters"),
    "inner key": ("depth = 12", "depht = 12", "models.mine.vit.depth"),
    "yes for a number": ("heads = 3", "heads = true", "models.mine.vit.heads"),
    "a date": ('paper = "none"', "paper = 2024-01-01", "models.mine"),
    "both kinds": ("parameters", 'convnet = {architecture = "resnet50"}\nparameters', "vit"),
    "no way to it": ('hosted = {repository = "me/mine"}', "", "hosted"),
    "two names": ("parameters", 'name = "other"\nparameters', "models.mine.name"),
    "a path": ("me/mine", "../mine", "models.mine.hosted.repository"),
    "a path for a name": ("[models.mine]", '[models."../mine"]', "models.../mine"),
    "an address": ("me/mine", "https://x/y", "models.mine.hosted.repository"),
    "short commit": ('"me/mine"', '"me/mine", commit = "abc"', "models.mine.hosted.commit"),
    "files of no commit": (
        '"me/mine"',
        f'"me/mine", files = {{a = {{sha256 = "{SHA256}"}}}}',
        "models.mine.hosted",
    ),
    "a file elsewhere": (
        '"me/mine"',
        f'"me/mine", commit = "{COMMIT}", files = {{"../a" = {{sha256 = "{SHA256}"}}}}',
        "models.mine.hosted.files",
    ),
    "not a number": (
        "parameters",
        'figures = [{metric = "top1", value = nan, source = "x"}]\nparameters',
        "models.mine.figures.0.value",
    ),
    "an escape": ('"Mine"', '"\\u001b[31mMine"', "models.mine.title"),
    "unknown teacher": ('"mae-vit-l"', '"mae-vit-x"', "models.mine.teacher"),
    "own teacher": ('"mae-vit-l"', '"mine"', "models.mine.teacher"),
    "not a table": (MINE, "[models]\nmine = 3", "models.mine"),
}


@pytest.mark.parametrize(("old", "new", "key"), BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES.keys())
def test_a_broken_entry_is_named_and_alone(old: str, new: str, key: str, settings: Path) -> None:
    assert old in MINE
    catalog = overlay(settings, MINE.replace(old, new, 1))
    assert catalog.models == SHIPPED.models
    (name,) = catalog.problems
    with pytest.raises(UsageError) as caught:
        catalog.find(name)
    assert str(settings / "catalog.toml") in caught.value.where
    assert key in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert resolve("mae-vit-l")


def test_what_replaces_a_shipped_model_badly_leaves_nothing_to_take(settings: Path) -> None:
    catalog = overlay(settings, '[models.mae-vit-l]\nteacher = "tinymim-vit-t"\n')
    broken = {"mae-vit-l", *(n for n, e in SHIPPED.models.items() if e.method == "tinymim")}
    assert set(catalog.problems) == broken  # all of them learn in a circle now
    with pytest.raises(UsageError, match="circle"):
        resolve("mae-vit-l")


# ---- Writing it


def test_what_is_added_reads_back_and_the_rest_stays(settings: Path) -> None:
    pinned = Hosted(
        repository="me/tinymim-vit-s",
        commit=COMMIT,
        files={"model.safetensors": FilePin(sha256=SHA256, size=1)},
    )
    score = Figure(metric="knn", value=70.5, source="in1k-knn@1", note='"quoted" \\ é')
    entry = replace(SHIPPED.models["tinymim-vit-s"], hosted=pinned, measured=(score,))
    assert add_to_user_catalog(entry) == settings / "catalog.toml"
    assert load_catalog().find("tinymim-vit-s") == entry
    overlay(settings, f"# my own remark\n{MINE}")
    add_to_user_catalog(entry)
    add_to_user_catalog(replace(entry, name="with.dots"))
    first = (settings / "catalog.toml").read_text()
    add_to_user_catalog(entry)
    assert (settings / "catalog.toml").read_text() == first
    assert "# my own remark" in first
    catalog = load_catalog()
    assert not catalog.problems
    assert catalog.find("mine").title == "Mine"
    assert catalog.find("with.dots").hosted == pinned
    assert [p.name for p in settings.iterdir() if p.name.startswith(".tmp")] == []


def test_writers_at_once_lose_nothing(settings: Path) -> None:
    entry = SHIPPED.models["mae-vit-l"]
    copies = [replace(entry, name=f"copy-{number}") for number in range(8)]
    threads = [threading.Thread(target=add_to_user_catalog, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {copy.name for copy in copies} <= set(load_catalog().models)


def test_a_link_stays_a_link(settings: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.toml").write_text("format = 1\n")
    (settings / "catalog.toml").symlink_to(tmp_path / "elsewhere.toml")
    add_to_user_catalog(SHIPPED.models["mae-vit-l"])
    assert (settings / "catalog.toml").is_symlink()
    assert "mae-vit-l" in (tmp_path / "elsewhere.toml").read_text()


def test_a_full_disk_is_said(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, data: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zoo.catalog, "atomic_write", fill)
    with pytest.raises(DiskError):
        add_to_user_catalog(SHIPPED.models["mae-vit-l"])


def test_a_home_that_is_no_folder_holds_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(zoo.settings, "user_config_path", lambda _: tmp_path / "file" / "tinyzoo")
    assert load_catalog() == SHIPPED
    with pytest.raises(UsageError, match="recipe only"):
        resolve("tinymim-vit-s")
