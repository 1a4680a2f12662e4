"""zoo doctor on packages: combinations that are known not to work, and imports that go wrong."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from dists import STANDARD_LIBRARY, install, sound, write_module
from hypothesis import given
from hypothesis import strategies as st

from zoo.doctor.check import Check, State
from zoo.doctor.combinations import combinations
from zoo.doctor.examine import examine
from zoo.doctor.installed import read_installed
from zoo.doctor.itself import itself_checks
from zoo.doctor.packages import MODULES, package_checks, steps
from zoo.doctor.trials import Trial, try_imports


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def looked_at(site: Path, trials: dict[str, Trial] | None = None) -> list[Check]:
    installed = read_installed([str(site)])
    return [*package_checks(installed, trials or {}), *combinations(installed, trials or {})]


def not_well(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.state in {State.WARN, State.BAD}]


def test_what_goes_together_is_left_in_peace(site: Path) -> None:
    checks = looked_at(sound(site))
    assert not_well(checks) == []
    assert {"torch", "torchvision", "timm", "extra onnx", "extra serve"} <= {c.name for c in checks}


# Combinations


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is wrong with a sound set of packages, and what must be said of it."""

    spoil: Callable[[Path], object]
    name: str
    says: str
    fix: str
    without: tuple[str, ...] = ()
    state: State = State.BAD


def has(*packages: tuple[str, ...]) -> Callable[[Path], object]:
    return lambda site: [install(site, p[0], p[1], p[2:]) for p in packages]


def twice(site: Path) -> None:
    install(site, "torch", "2.14.0")
    install(site, "torch", "2.15.0")


BOTH = "pip install --upgrade --force-reinstall torch torchvision"
CASES = {
    "a CPU-only torch with the registry's torchvision": Case(
        spoil=has(("torch", "2.15.0+cpu"), ("torchvision", "0.29.2", "torch>=2.14.0")),
        name="torch + torchvision",
        says="two kinds",
        fix=BOTH,
    ),
    "torch and torchvision for different CUDAs": Case(
        spoil=has(("torch", "2.15.0+cu130"), ("torchvision", "0.29.2+cu126")),
        name="torch + torchvision",
        says="two kinds",
        fix=BOTH,
    ),
    "a torchvision for another torch": Case(
        spoil=has(("torch", "2.15.0"), ("torchvision", "0.26.0", "torch (==2.11.0)")),
        name="torch + torchvision",
        says="needs torch ==2.11.0; 2.15.0 is installed",
        fix=BOTH,
    ),
    "the original OpenMMLab beside the fork": Case(
        spoil=has(("mmcv", "2.1.0"), ("mmengine", "0.10.4"), ("onedl-mmcv", "2.3.6")),
        name="openmmlab",
        says="mmcv 2.1.0, mmengine 0.10.4, onedl-mmcv 2.3.6",
        fix="pip uninstall -y mmcv mmengine && pip install --force-reinstall",
    ),
    "an old torch": Case(
        spoil=has(("torch", "2.9.1")),
        name="torch",
        says="needs torch >=2.11; 2.9.1 is installed",
        fix="pip install 'torch>=2.11'",
        without=("torchvision",),
    ),
    "an old client of the Hub": Case(
        spoil=has(("huggingface_hub", "0.36.0")),
        name="huggingface-hub",
        says="0.36.0 is installed",
        fix="pip install 'huggingface-hub>=1'",
        without=("huggingface-hub",),
    ),
    "no timm": Case(
        spoil=lambda site: None,
        name="timm",
        says="needs timm >=1; it is not installed",
        fix="pip install 'timm>=1'",
        without=("timm",),
    ),
    "two versions of torch": Case(
        spoil=twice,
        name="torch twice",
        says="2.14.0 and of 2.15.0",
        fix="pip uninstall -y torch, as often",
    ),
    "half an extra": Case(
        spoil=has(("starlette", "0.1")),
        name="extra serve",
        says="needs starlette >=1; 0.1 is installed",
        fix="pip install 'tinyzoo[serve]'",
        state=State.WARN,
    ),
    "what a requirement requires": Case(
        spoil=has(("timm", "1.0.31", "pyyaml>=6")),
        name="pyyaml",
        says="timm 1.0.31 needs pyyaml >=6; it is not installed",
        fix="pip install 'pyyaml>=6'",
        state=State.WARN,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_known_bad_combination_is_named_with_its_fix(site: Path, case: Case) -> None:
    case.spoil(site)
    sound(site, without=case.without)
    found = {check.name: check for check in not_well(looked_at(site))}
    assert case.name in found
    assert found[case.name].state == case.state
    assert case.says in found[case.name].what
    assert found[case.name].fix.startswith(case.fix)


def test_an_extra_that_is_not_there_is_no_fault(site: Path) -> None:
    checks = looked_at(sound(site, without=("onnxruntime",)))
    assert not_well(checks) == []
    (extra,) = (check for check in checks if check.name == "extra onnx")
    assert extra.state == State.NOTE
    assert extra.fix == "pip install 'tinyzoo[onnx]'"


def test_builds_of_two_kinds_that_import_are_only_noted(site: Path) -> None:
    install(site, "torch", "2.15.0+cpu")
    checks = looked_at(sound(site), {"torchvision": Trial()})
    assert [c.state for c in checks if c.name == "torch + torchvision"] == [State.NOTE]


def test_a_package_that_pip_was_removing_is_none(site: Path) -> None:
    sound(site)
    install(site, "~orch", "2.1.0")
    assert not_well(looked_at(site)) == []


def test_one_version_hides_another(site: Path, tmp_path: Path) -> None:
    install(tmp_path / "user", "torch", "2.12.0")
    installed = read_installed([str(sound(site)), str(tmp_path / "user")])
    (hidden,) = (check for check in combinations(installed, {}) if check.name == "torch twice")
    assert hidden.state == State.NOTE
    assert f"9.0 in {site} hides 2.12.0" in hidden.what


@given(metadata=st.binary(max_size=300) | st.text(max_size=300).map(str.encode), name=st.text())
def test_whatever_stands_in_metadata_nothing_is_raised(
    tmp_path_factory: pytest.TempPathFactory, metadata: bytes, name: str
) -> None:
    site = tmp_path_factory.mktemp("site")
    for number, lines in enumerate([metadata, f"Name: torch\nVersion: {name}\n".encode()]):
        folder = site / f"torch-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_bytes(lines + b"Requires-Dist: " + metadata)
        (folder / "direct_url.json").write_bytes(metadata)
    assert looked_at(site)


# This tinyzoo


def itself(site: Path, root: Path) -> Check:
    return list(itself_checks(read_installed([str(site)]), root))[1]


def checkout(folder: Path) -> Path:
    (folder / "zoo").mkdir(parents=True)
    (folder / "zoo" / "__init__.py").touch()
    (folder / "pyproject.toml").touch()
    return folder


def editable(site: Path, folder: Path) -> None:
    install(site, "tinyzoo", "0.1.0")
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    (site / "tinyzoo-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))


def test_an_editable_install_is_shown(site: Path, tmp_path: Path) -> None:
    root = checkout(tmp_path / "a checkout")
    editable(site, root)
    assert itself(site, root).state == State.OK


def test_an_editable_install_of_another_folder_is_noted(site: Path, tmp_path: Path) -> None:
    other, root = checkout(tmp_path / "other"), checkout(tmp_path / "this")
    editable(site, other)
    assert itself(site, root).state == State.NOTE
    assert str(other) in itself(site, root).what


def test_a_broken_editable_install(site: Path, tmp_path: Path) -> None:
    editable(site, tmp_path / "gone")
    check = itself(site, checkout(tmp_path / "this"))
    assert check.state == State.BAD
    assert "gone" in check.what
    assert check.fix == f"pip install --editable {tmp_path / 'this'}"


def test_no_installation_at_all(site: Path, tmp_path: Path) -> None:
    assert itself(site, checkout(tmp_path / "this")).state == State.BAD


# Imports


ENDS = {
    "raises": ("raise RuntimeError('no such operator\\nmore')", "RuntimeError: no such operator"),
    "leaves": ("raise SystemExit(3)", "SystemExit: 3"),
    "aborts": ("import os; os.abort()", "crashed: SIGABRT"),
    "crashes": (
        "import sys; sys.stderr.write('bad address\\n'); sys.stderr.flush()\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "crashed: SIGSEGV (bad address)",
    ),
    "ends": ("import os; os._exit(7)", "ended with code 7"),
    "hangs": ("import time; time.sleep(60)", "not done after 1 s"),
    "missing": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
}


@pytest.mark.parametrize(("code", "says"), ENDS.values(), ids=ENDS.keys())
def test_whatever_an_import_does_the_rest_is_tried(site: Path, code: str, says: str) -> None:
    write_module(site, "before", "__version__ = '1.5'; print('{\"begin\": \"lies\"}')")
    write_module(site, "torchvision", code)
    write_module(site, "after", "")
    modules = ["before", "torchvision", "timm", "after"]
    trials = try_imports(modules, [str(site), *STANDARD_LIBRARY], limit_seconds=1)
    assert list(trials) == modules
    assert trials["before"].version == "1.5"
    assert trials["before"].error == trials["after"].error == ""
    assert says in trials["torchvision"].error
    assert "\n" not in trials["torchvision"].error
    assert trials["timm"].error == "not tried: torchvision does not import"


def test_no_process_can_be_started(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(site / "none"))
    trials = try_imports(["json", "re"], STANDARD_LIBRARY)
    assert [trial.error for trial in trials.values()] == [
        "no process could be started: No such file or directory"
    ] * 2


ERRORS = {
    "torchvision": ("raise RuntimeError('operator torchvision::nms does not exist')", BOTH),
    "simplejpeg": ("raise ImportError('numpy.core.multiarray failed to import')", "numpy"),
    "numpy": ("import os; os.abort()", "pip install --force-reinstall numpy"),
    "huggingface-hub": ("int('abc')", "unset HF_HUB_ETAG_TIMEOUT"),
    "pillow": (
        "raise ImportError('libX11.so.6: cannot open')",
        "pip install --force-reinstall pillow",
    ),
}


@pytest.mark.parametrize(("name", "code", "fix"), [(n, *e) for n, e in ERRORS.items()])
def test_an_import_that_fails_is_named_with_its_fix(
    site: Path, name: str, code: str, fix: str
) -> None:
    install(site, name, module=MODULES[name], code=code)
    path = [str(sound(site)), *STANDARD_LIBRARY]
    checks = {check.name: check for check in examine(offline=True, path=path).checks}
    assert checks[name].state == State.BAD
    assert "does not import" in checks[name].what
    assert fix in checks[name].fix


def test_opencv_without_the_system_s_opengl(site: Path) -> None:
    code = "raise ImportError('libGL.so.1: cannot open shared object file: No such file')"
    install(site, "opencv-python", module="cv2", code=code)
    path = [str(sound(site)), *STANDARD_LIBRARY]
    trials = try_imports(steps(read_installed(path)), path)
    (found,) = not_well(looked_at(site, trials))
    assert (found.name, found.state) == ("opencv", State.WARN)
    assert found.fix.endswith("opencv-python-headless")
    install(site, "onedl-mmcv", "2.3.6")
    assert [check.state for check in not_well(looked_at(site, trials))] == [State.BAD]


def test_the_module_is_another_version_than_its_metadata(site: Path) -> None:
    checks = looked_at(sound(site), {"torch": Trial(version="2.11.0+cu126")})
    assert [check.name for check in not_well(checks)] == ["torch"]
