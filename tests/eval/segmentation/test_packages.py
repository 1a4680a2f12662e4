"""The packages that segmentation needs: missing, or in the company of their originals."""

import importlib.metadata
from pathlib import Path

import pytest
from dists import install

from eval.segmentation import packages
from zoo.errors import UsageError


def test_the_fork_is_here() -> None:
    packages.require_packages()


def test_originals_beside_the_fork_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "mmsegmentation", "1.2.2")
    install(tmp_path, "mmcv-lite", "2.1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"mmcv-lite 2.1.0, mmsegmentation 1.2.2") as caught:
        packages.require_packages()
    assert "pip uninstall -y mmcv-lite mmsegmentation" in caught.value.fix


def test_what_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "onedl-mmengine":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    with pytest.raises(UsageError, match="segmentation needs onedl-mmengine") as caught:
        packages.require_packages()
    assert caught.value.fix == "pip install 'tinyzoo[seg]'"
