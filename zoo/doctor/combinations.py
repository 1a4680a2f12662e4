"""The combinations of packages that are known not to work, each with its fix."""

from collections.abc import Iterator, Mapping, Sequence

from zoo.doctor.check import BAD, NOTE, OK, WARN, Check, listed, printable
from zoo.doctor.installed import OURS, Installed, Package, faults, first, needed_by
from zoo.doctor.packages import FORK, OPENCVS, PAIR, SHOWN
from zoo.doctor.remedy import BOTH, remedy
from zoo.doctor.trials import Trial

ORIGINALS = ("mmcv", "mmcv-full", "mmcv-lite", "mmengine", "mmengine-lite", "mmsegmentation")


def combinations(installed: Installed, trials: Mapping[str, Trial]) -> Iterator[Check]:
    """What does not work together, each with its fix."""
    yield from _pair(installed, trials)
    yield from _openmmlab(installed, trials)
    yield from _opencv(installed, trials)
    ours = first(installed, OURS)
    names = needed_by(ours, installed) if ours else {*SHOWN}
    for name in sorted({*names, *FORK}):
        yield from _twice(name, installed.get(name, []))


def _twice(name: str, packages: Sequence[Package]) -> Iterator[Check]:
    """One package, two versions: in one folder, which of them is there is luck."""
    versions = list(dict.fromkeys(package.version for package in packages))
    folders = list(dict.fromkeys(package.metadata.parent for package in packages))
    if len(folders) < len(packages):
        what = f"there is metadata of {' and of '.join(versions)} in {folders[0]}"
        fix = f"pip uninstall -y {name}, as often as it finds one, then pip install {name}"
        yield Check(f"{name} twice", BAD, what, fix)
    elif len(versions) > 1:
        what = f"{versions[0]} in {folders[0]} hides {versions[1]} in {folders[1]}"
        yield Check(f"{name} twice", NOTE, what, "if that is not meant: a new virtual environment")


def _pair(installed: Installed, trials: Mapping[str, Trial]) -> Iterator[Check]:
    """torch and torchvision: of one kind, and the version that torchvision itself asks for."""
    torch, vision = (first(installed, name) for name in PAIR)
    if not (torch and vision):
        return
    for fault in faults(vision, installed):
        if fault.requirement.name == "torch":
            yield Check("torch + torchvision", BAD, fault.text(), BOTH)
            return
    builds = [p.release.local or "" if p.release else "" for p in (torch, vision)]
    if builds[0] == builds[1] or not builds[0] or (not builds[1] and "cpu" not in builds[0]):
        return
    what = f"torch {torch.version} and torchvision {vision.version} are builds of two kinds"
    trial = trials.get("torchvision")
    if trial and not trial.error:
        yield Check("torch + torchvision", NOTE, f"{what}; they import together nevertheless")
    else:
        yield Check("torch + torchvision", BAD, f"{what}: timm cannot be imported", BOTH)


def _openmmlab(installed: Installed, trials: Mapping[str, Trial]) -> Iterator[Check]:
    originals = [p for name in ORIGINALS if (p := first(installed, name))]
    fork = [p for name in FORK if (p := first(installed, name))]
    named = listed(f"{package.name} {package.version}" for package in [*originals, *fork])
    install = f"pip install {' '.join(FORK)}"
    remove = f"pip uninstall -y {' '.join(package.name for package in originals)} && "
    if originals and fork:
        what = f"the original and its kept fork, which share their import names: {named}"
        again = install.replace("install", "install --force-reinstall --no-deps")
        yield Check("openmmlab", BAD, what, remove + again)
    elif originals:
        what = f"{named}: the original; only the kept fork works with this torch"
        yield Check("openmmlab", NOTE, what, remove + install)
    elif not fork:
        yield Check("openmmlab", NOTE, "not installed; only for segmentation", install)
    elif (trial := trials.get("mmseg")) and trial.error:
        what = f"{named}: mmseg does not import: {printable(trial.error)}"
        yield Check("openmmlab", WARN, what, remedy(trial.error, FORK[-1]))
    else:
        yield Check("openmmlab", OK, named)


def _opencv(installed: Installed, trials: Mapping[str, Trial]) -> Iterator[Check]:
    here = [p for name in OPENCVS if (p := first(installed, name))]
    trial = trials.get("cv2")
    if not here:
        return
    named = listed(f"{package.name} {package.version}" for package in here)
    if trial and trial.error:
        state = BAD if first(installed, FORK[0]) else WARN  # nothing else of ours needs it
        what = f"{named}: cv2 does not import: {printable(trial.error)}"
        yield Check("opencv", state, what, remedy(trial.error, here[0].name))
    else:
        yield Check("opencv", OK, named)
