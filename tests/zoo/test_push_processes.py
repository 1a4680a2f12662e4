"""Pushes that are killed, or meet: in processes of their own."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from hubclient import point_process_at
from huggingface_hub import HfApi
from ownhub import OwnHub
from pushes import NAME, make
from runs import Run, run

from zoo.errors import Exit
from zoo.hub import pull_model

MOMENTS = ["/objects/batch", "/commit/", "/tag/"]


def _prepare(endpoint: str, cache: Path, token: str) -> None:
    point_process_at(endpoint, cache)
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    os.environ["HF_TOKEN"] = token


def at(hub: OwnHub, tmp_path: Path) -> Callable[[], None]:
    """What makes a forked process use this server."""
    return partial(_prepare, hub.endpoint, tmp_path / "cache", hub.token)


def test_a_push_killed_anywhere_is_finished_by_the_next(
    hub: OwnHub, api: HfApi, tmp_path: Path
) -> None:
    model = make(tmp_path / "tiny")
    command = ["push", str(model), "--repo", NAME]
    for moment in MOMENTS:
        started = Run(command, prepare=at(hub, tmp_path))

        def kill(method: str, path: str, part: str = moment, victim: Run = started) -> None:
            if method == "POST" and part in path:
                victim.processes[0].kill()

        hub.after = kill
        started.wait()
        hub.after = lambda method, path: None
        assert len(api.list_repo_refs(NAME).tags) == (moment == "/tag/")
    assert run(command, prepare=at(hub, tmp_path)) == [Exit.DONE]
    commits = [commit.commit_id for commit in api.list_repo_commits(NAME)]
    (tag,) = api.list_repo_refs(NAME).tags
    assert (tag.name, tag.target_commit) == ("v1", commits[0])
    assert len(commits) == 2, "the repository's own first, and one of all the pushes"
    assert (pull_model(NAME).folder / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("same", [True, False])
def test_pushes_at_once_leave_whole_models(
    hub: OwnHub, api: HfApi, tmp_path: Path, same: bool
) -> None:
    models = [make(tmp_path / f"tiny{i}", seed=0 if same else i) for i in range(3)]
    commands = [["push", str(model), "--repo", NAME] for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        codes = list(pool.map(partial(run, prepare=at(hub, tmp_path)), commands))
    assert codes == [[Exit.DONE]] * len(models)
    tags = api.list_repo_refs(NAME).tags
    assert len(tags) == (1 if same else 3)
    weights = {(model / "model.safetensors").read_bytes() for model in models}
    pulled = [pull_model(f"{NAME}@{tag.name}").folder for tag in tags]
    assert {(folder / "model.safetensors").read_bytes() for folder in pulled} == weights
