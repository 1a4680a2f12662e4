"""What zoo serve makes of the folder it is given: repositories, commits, and nothing unsafe."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hubclient import quick_client, usual_client
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from models import make_model
from ownhub import OwnHub, additions, own_hub, use_client

from zoo.errors import IntegrityError, UsageError
from zoo.files import sha256_of
from zoo.pull import pull
from zoo.server.folders import find_models, look, store_of
from zoo.server.history import History
from zoo.verify import verify_folder


@pytest.fixture
def served(tmp_path: Path) -> Path:
    make_model(tmp_path / "served" / "org" / "tiny")
    return tmp_path / "served"


@pytest.fixture
def hub(served: Path) -> Iterator[OwnHub]:
    quick_client()
    with own_hub(served) as hub:
        yield hub
    usual_client()


@pytest.fixture
def api(hub: OwnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> huggingface_hub.HfApi:
    return use_client(monkeypatch, hub, tmp_path / "cache")


def run_folder(folder: Path) -> Path:
    """As a training run leaves it; returns its model folder."""
    for name in ("checkpoints/step-2/optimizer.safetensors", "log.jsonl", "recipe.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return make_model(folder / "export")


# Names


def test_names_come_from_where_a_model_lies(served: Path) -> None:
    for name in ("alone", "other/one", "with space", "a--b", "deep/er/still"):
        (served / name).mkdir(parents=True)
        (served / name / "config.json").write_text("{}")
    run_folder(served / "run")
    (served / "linked").symlink_to(served / "alone")
    (served / "other" / "linked").symlink_to(served / "alone")
    for name in ("both", "local/both", "local/behind"):
        (served / name).mkdir(parents=True)
        (served / name / "config.json").write_text("{}")
    (served / "behind").symlink_to(served / "alone")
    found = find_models(served)
    assert {name: path.relative_to(served).as_posix() for name, path in found.models.items()} == {
        "local/alone": "alone",
        "local/behind": "local/behind",
        "local/both": "both",
        "local/run": "run/export",
        "org/tiny": "org/tiny",
        "other/one": "other/one",
    }
    assert {path.relative_to(served).as_posix() for path in found.skipped} == {
        *("with space", "a--b", "linked", "other/linked", "behind", "local/both"),
    }
    for name, model in found.models.items():
        assert find_models(served, name).models == {name: model}
    for name in ("local/Alone", "ORG/tiny", "local/other", "local/linked", "org/..", "../org"):
        assert not find_models(served, name).models


def test_no_link_is_followed_on_the_way_to_a_model(served: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "elsewhere" / "run")
    (served / "linked").symlink_to(tmp_path / "elsewhere")
    (served / "run").symlink_to(tmp_path / "elsewhere" / "run")
    (served / "other" / "run").mkdir(parents=True)
    (served / "other" / "run" / "recipe.json").write_text("{}")
    (served / "other" / "run" / "export").symlink_to(tmp_path / "elsewhere" / "run" / "export")
    found = find_models(served)
    assert found.models.keys() == {"org/tiny"}
    assert {path.relative_to(served).as_posix(): why for path, why in found.skipped.items()} == {
        "linked/run/export": "a link",
        "run/export": "a link",
        "other/run/export": "a link",
    }
    (tmp_path / "by-a-link").symlink_to(served)  # the user's own choice
    assert find_models(tmp_path / "by-a-link").models == found.models


def test_a_model_or_a_run_may_be_all_there_is(tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    export = run_folder(run)
    assert find_models(run).models == find_models(export).models == {"local/my-run": export}
    tiny = make_model(tmp_path / "tiny")
    assert find_models(tiny).models == {"local/tiny": tiny}
    assert store_of(export) == store_of(run) == run / ".zoo-serve"
    assert store_of(tiny) == tmp_path / ".zoo-serve"


def test_a_model_folder_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = make_model(tmp_path / "tiny")
    before = sorted(tiny.iterdir())
    with own_hub(tiny) as hub:
        use_client(monkeypatch, hub, tmp_path / "cache")
        assert verify_folder(pull("local/tiny").folder).files
    assert sorted(tiny.iterdir()) == before


# Files


def test_only_what_a_pull_fetches_is_served(served: Path, api: huggingface_hub.HfApi) -> None:
    model = served / "org" / "tiny"
    (served / "secret.json").write_text("secret")
    for name in (
        "train.py",
        "weights.pth",
        ".env",
        ".hidden.json",
        "optimizer.safetensors",
        "checkpoints/step-1/model.safetensors",
        "sub/.git/config.json",
        "sub/more.safetensors",
        "con.json",
        ".gitattributes",
        "sub/curve.png",
    ):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"x")
    (model / "link.json").symlink_to(served / "secret.json")
    (model / "inside.json").symlink_to(model / "config.json")
    (model / "folder").symlink_to(served)
    os.mkfifo(model / "pipe.json")
    assert set(api.list_repo_files("org/tiny")) == {
        *("config.json", "model.safetensors", "README.md", "zoo.json"),
        *(".gitattributes", "sub/curve.png"),
    }


def test_a_folder_that_changes_is_a_new_commit(
    served: Path, hub: OwnHub, api: huggingface_hub.HfApi
) -> None:
    model = served / "org" / "tiny"
    first = pull("org/tiny")
    weights = (first.folder / "model.safetensors").read_bytes()
    assert pull("org/tiny").commit == first.commit
    (model / "README.md").touch()  # of the same bytes
    assert pull("org/tiny").commit == first.commit
    make_model(model, seed=1)
    second = pull("org/tiny")
    assert second.commit != first.commit
    assert (second.folder / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert [c.commit_id for c in api.list_repo_commits("org/tiny")] == [
        second.commit,
        first.commit,
    ]
    old = hub.raw("GET", f"/org/tiny/resolve/{first.commit}/model.safetensors")
    assert old.content == weights


def test_a_model_that_comes_is_there_and_one_that_goes_is_gone(
    served: Path, api: huggingface_hub.HfApi
) -> None:
    make_model(served / "second")
    assert {m.id for m in api.list_models()} == {"org/tiny", "local/second"}
    (served / "second" / "config.json").unlink()
    assert {m.id for m in api.list_models()} == {"org/tiny"}
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("local/second")


def test_the_repository_of_a_folder_that_is_gone_can_be_pushed_to(
    served: Path, api: huggingface_hub.HfApi
) -> None:
    make_model(served / "second")
    first = api.model_info("local/second").sha
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("local/second")
    shutil.rmtree(served / "second")
    assert {m.id for m in api.list_models()} == {"org/tiny"}
    api.create_repo("local/second", private=True)
    assert api.model_info("local/second").private
    changes = additions({"more.txt": b"more"})
    pushed = api.create_commit("local/second", changes, commit_message="more").oid
    assert api.model_info("local/second").sha == pushed
    assert [c.commit_id for c in api.list_repo_commits("local/second")] == [pushed, first]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("local/second")


def test_a_push_onto_a_folder_is_kept_until_the_folder_changes(
    served: Path, api: huggingface_hub.HfApi
) -> None:
    found = api.model_info("org/tiny").sha
    changes = additions({"more.txt": b"more"})
    pushed = api.create_commit("org/tiny", changes, commit_message="more", parent_commit=found).oid
    assert api.model_info("org/tiny").sha == pushed
    (served / "org" / "tiny" / "NOTICE").write_text("notice")
    files = set(api.list_repo_files("org/tiny"))
    assert "NOTICE" in files
    assert "more.txt" not in files
    assert "more.txt" in api.list_repo_files("org/tiny", revision=pushed)
    assert not (served / "org" / "tiny" / "more.txt").exists()


def test_the_look_at_a_folder_names_what_is_served(served: Path) -> None:
    model = served / "org" / "tiny"
    seen = look(model)
    assert list(seen) == sorted(seen)
    assert {name: size for name, (size, _, _) in seen.items()} == {
        path.name: path.stat().st_size for path in model.iterdir()
    }


# Restarts


def test_history_outlives_the_server(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_hub(served) as hub:
        api = use_client(monkeypatch, hub, tmp_path / "cache")
        api.create_repo("me/mine", private=True)
        files = additions({"config.json": b"{}", "model.safetensors": b"weights"})
        commit = api.create_commit("me/mine", files, commit_message="one").oid
        api.create_tag("me/mine", tag="v1")
        api.create_branch("me/mine", branch="try")
        found = api.model_info("org/tiny").sha
        before = {state.name: state for state in hub.history.states()}
    with own_hub(served) as hub:
        api = use_client(monkeypatch, hub, tmp_path / "cache")
        assert {state.name: state for state in hub.history.states()} == before
        assert api.model_info("me/mine", revision="v1").sha == commit
        assert api.model_info("me/mine").private
        assert api.model_info("org/tiny").sha == found
        assert pull("me/mine@try").folder.joinpath("model.safetensors").read_bytes() == b"weights"
        assert len(api.list_repo_commits("org/tiny")) == 1


def test_one_server_at_a_time(served: Path, hub: OwnHub) -> None:
    with pytest.raises(UsageError, match="another server"):
        History(store_of(served))
    hub.stop()
    History(store_of(served)).close()


def test_what_a_dead_server_left_is_cleared_and_never_seen(served: Path) -> None:
    history = History(store_of(served))
    litter = history.blobs.folder / f".tmp-{2**22 + 1}-half"
    litter.write_bytes(b"half")
    history.close()
    again = History(store_of(served))
    again.close()
    assert not litter.exists()


def test_a_damaged_history_is_named(served: Path, hub: OwnHub) -> None:
    hub.raw("GET", "/api/models/org/tiny")
    hub.stop()
    state = store_of(served) / "repositories" / "org" / "tiny" / "state.json"
    for damage in ("", "[]", '{"name": 3}'):
        state.write_text(damage)
        with pytest.raises(IntegrityError, match="history cannot be read"):
            History(store_of(served))


def test_damage_under_a_running_server_is_its_own_fault(
    served: Path, hub: OwnHub, caplog: pytest.LogCaptureFixture
) -> None:
    model = hub.raw("GET", "/api/models/org/tiny").json()
    repository = store_of(served) / "repositories" / "org" / "tiny"
    card = served / "org" / "tiny" / "README.md"
    for damaged, asked in {
        store_of(served) / "blobs" / sha256_of(card): "/org/tiny/resolve/main/README.md",
        repository / "commits" / f"{model['sha']}.json": "/api/models/org/tiny",
    }.items():
        caplog.clear()
        damaged.write_text("[]")
        answer = hub.raw("GET", asked)
        assert answer.status_code == 500
        assert str(damaged) in caplog.text
        assert str(served) not in answer.text
