"""A published model as an entry of the catalog."""

from dataclasses import replace

from zoo.catalog import load_catalog
from zoo.entry import Convnet, Entry, FilePin, Hosted, Licenses, ViT
from zoo.layout import convnet_of, image_size_of, read_layout
from zoo.package import Package
from zoo.verify import CONFIG


def entry_of(package: Package, commit: str) -> Entry:
    """The entry, pinned: that of this name where network and method are the same.

    Raises UsageError where the user's catalog is broken, ValueError where the name is taken by
    another repository, or the catalog has no place for what the model says of itself.
    """
    name = package.terms.repository.partition("/")[2]
    pins = {file: FilePin(sha256=r.sha256, size=r.size) for file, r in package.files.items()}
    hosted = Hosted(
        repository=package.terms.repository, commit=commit, files=pins, signer=package.signer
    )
    card = package.card
    licenses = Licenses(code=card.licenses.get("code", "not stated"), weights=package.license)
    network = _network(package)
    known = load_catalog().models
    entry = known.get(name)
    if entry and entry.hosted and entry.hosted.repository != hosted.repository:
        raise ValueError(f"{name} is there already: that of {entry.hosted.repository}")
    if entry and entry.network == network and entry.method == card.method:
        return replace(entry, hosted=hosted, licenses=licenses)
    ancestor = card.base or card.teacher
    teacher = ancestor.name.rpartition("/")[2] if ancestor else None
    return Entry(
        name=name,
        title=f"{card.name}, {card.method}",
        method=card.method,
        paper="none: published by its maker",
        vit=network if isinstance(network, ViT) else None,
        convnet=network if isinstance(network, Convnet) else None,
        parameters=package.parameters,
        teacher=teacher if teacher in known and teacher != name else None,
        licenses=licenses,
        hosted=hosted,
    )


def _network(package: Package) -> ViT | Convnet:
    layout = read_layout(package.folder / CONFIG)
    if package.card.heads is None:
        architecture, _ = convnet_of(layout)
        return Convnet(architecture=architecture, image_size=image_size_of(layout))
    from zoo.folder import read_config

    config = read_config(package.folder)
    return ViT(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        patch=config.patch,
        image_size=config.image_size,
    )
