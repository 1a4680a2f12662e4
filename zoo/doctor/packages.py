"""Which packages are here, in which version, and whether they import."""

from collections.abc import Iterator, Mapping

from packaging.utils import canonicalize_name

from zoo.doctor.check import BAD, NOTE, OK, WARN, Check, printable
from zoo.doctor.installed import OURS, Fault, Installed, Package, faults, first, requirements
from zoo.doctor.remedy import remedy
from zoo.doctor.trial import GPU
from zoo.doctor.trials import Trial

PAIR = ("torch", "torchvision")
SHOWN = (
    *PAIR,
    "timm",
    "huggingface-hub",
    "safetensors",
    "numpy",
    "pillow",
    "simplejpeg",
    "pydantic",
)
"""Required, and worth a line each."""
OPENCVS = tuple(f"opencv{c}-python{h}" for h in ("", "-headless") for c in ("", "-contrib"))
FORK = ("onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation")
MODULES = {
    **{name: name for name in (*PAIR, "timm", "numpy", "simplejpeg", "safetensors", "pydantic")},
    "huggingface-hub": "huggingface_hub.utils",
    "pillow": "PIL.Image",
    "onnxruntime": "onnxruntime",
    "starlette": "starlette.applications",
    "model-signing": "model_signing",
    **dict.fromkeys(OPENCVS, "cv2"),
    "onedl-mmsegmentation": "mmseg",
}
"""What is imported of each package."""

_REASONS = {"torch": "reading .pth files is safe from 2.11 on"}


def steps(installed: Installed) -> list[str]:
    """The modules to try, torch before what needs it; the required ones installed or not."""
    wanted = [name for name in MODULES if name in SHOWN or first(installed, name)]
    modules = list(dict.fromkeys(MODULES[name] for name in wanted))
    return [modules[0], GPU, *modules[1:]]


def package_checks(installed: Installed, trials: Mapping[str, Trial]) -> Iterator[Check]:
    """What is installed, a line each, and what should be.  trials: by module, as far as tried."""
    ours = first(installed, OURS)
    for name in SHOWN:
        yield _required(name, ours, installed, trials)
    if ours:
        yield from _others(ours, installed)
        for extra in ours.extras:
            yield from _extra(extra, ours, installed, trials)


def _required(
    name: str, ours: Package | None, installed: Installed, trials: Mapping[str, Trial]
) -> Check:
    package, trial = first(installed, name), trials.get(MODULES[name])
    unmet = [f for f in faults(ours, installed) if _is(f, name)] if ours else []
    if unmet:
        reason = f" ({_REASONS[name]})" if name in _REASONS else ""
        return Check(name, BAD, unmet[0].text() + reason, unmet[0].fix())
    if trial and trial.error:
        version = package.version if package else "no metadata"
        tried = "" if trial.error.startswith("not tried") else "does not import: "
        what = f"{version}: {tried}{printable(trial.error)}"
        return Check(name, BAD, what, remedy(trial.error, name))
    if package is None:
        return Check(name, BAD, "not installed", f"pip install {name}")
    told = trial.version.partition("+")[0] if trial else ""
    if name in PAIR and told and told != package.version.partition("+")[0]:
        what = f"the metadata says {package.version}, the module {printable(told)}"
        return Check(name, WARN, what, f"pip install --force-reinstall {name}")
    return Check(name, OK, package.version + _seconds(trial))


def _others(ours: Package, installed: Installed) -> Iterator[Check]:
    """The requirements without a line of their own, and those of requirements."""
    broken = [f for f in faults(ours, installed) if not any(_is(f, name) for name in SHOWN)]
    for fault in broken:
        yield Check(fault.requirement.name, BAD, fault.text(), fault.fix())
    for fault in _deep(ours, installed):
        yield Check(fault.requirement.name, WARN, fault.text(), fault.fix())
    others = [r.name for r in requirements(ours) if canonicalize_name(r.name) not in SHOWN]
    if not broken:
        versions = (f"{n} {p.version}" for n in others if (p := first(installed, n)))
        yield Check("the rest", OK, ", ".join(versions))


def _deep(ours: Package, installed: Installed) -> Iterator[Fault]:
    """Unmet requirements of what we require; torchvision's of torch has a check of its own."""
    for fault in faults(ours, installed, deep=True):
        if fault.by != ours and not _is(fault, "torch"):
            yield fault


def _is(fault: Fault, name: str) -> bool:
    return canonicalize_name(fault.requirement.name) == name


def _extra(
    extra: str, ours: Package, installed: Installed, trials: Mapping[str, Trial]
) -> Iterator[Check]:
    name, install = f"extra {extra}", f"pip install 'tinyzoo[{extra}]'"
    here = [(r, first(installed, r.name)) for r in requirements(ours, extra)]
    absent = [requirement.name for requirement, package in here if package is None]
    if here and len(absent) == len(here):
        yield Check(name, NOTE, f"not installed ({', '.join(absent)})", install)
        return
    broken = list(faults(ours, installed, extra, deep=True))
    known = {(f.by, str(f.requirement)) for f in faults(ours, installed, deep=True)}
    broken = [fault for fault in broken if (fault.by, str(fault.requirement)) not in known]
    for fault in broken:
        yield Check(name, WARN, fault.text(), install)
    failed = [
        (requirement.name, trial.error)
        for requirement, _ in here
        if (trial := trials.get(MODULES.get(canonicalize_name(requirement.name), "")))
        and trial.error
    ]
    for package, error in failed:
        what = f"{package} does not import: {printable(error)}"
        yield Check(name, WARN, what, remedy(error, package))
    if not broken and not failed:
        yield Check(name, OK, ", ".join(f"{r.name} {p.version}" for r, p in here if p))


def _seconds(trial: Trial | None) -> str:
    return f", imports in {trial.seconds:.1f} s" if trial and trial.seconds >= 0.5 else ""
