"""One colour for each class: ADE20K's own, or colours far from each other."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

# The sides of a grid of candidates in RGB: 16³ of them, 17 levels apart.
_LEVELS = np.arange(0, 256, 17)
_LINEAR_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE_D65 = _LINEAR_TO_XYZ.sum(axis=1)


@cache
def ade20k_facts() -> tuple[tuple[str, ...], np.ndarray] | None:
    """Names and (150, 3) uint8 colours of ADE20K's classes as mmsegmentation lists them.

    None where it is not installed.  Its file is parsed and not imported: the import takes ten
    seconds, and neither a list of classes nor a picture needs the rest of it.
    """
    package = find_spec("mmseg")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "datasets" / "ade.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            stated = {word.arg: word.value for word in node.keywords}
            if {"classes", "palette"} <= stated.keys():
                names = [name.strip() for name in ast.literal_eval(stated["classes"])]
                colours = np.array(ast.literal_eval(stated["palette"]), np.uint8)
                colours.setflags(write=False)
                return tuple(names), colours
    return None


def distinct_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 RGB: each is the colour farthest from all before it, black and white too.

    Distances are of CIELAB (CIE76), as in "glasbey" palettes (Glasbey et al., "Colour displays for
    categorical images", 2007).  The first n are the same whatever the count, at most 4,094.
    """
    grid_RGB = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1)
    candidates = grid_RGB.reshape(-1, 3)
    lab = lab_of(candidates)
    nearest = np.minimum(_distances(lab, lab[0]), _distances(lab, lab[-1]))
    chosen = np.empty(count, np.int64)
    for i in range(count):
        chosen[i] = nearest.argmax()
        nearest = np.minimum(nearest, _distances(lab, lab[chosen[i]]))
    return candidates[chosen].astype(np.uint8)


def lab_of(colours: np.ndarray) -> np.ndarray:
    """(C, 3) CIELAB under D65 of sRGB colours in 0 … 255."""
    srgb = colours / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _LINEAR_TO_XYZ.T / _WHITE_D65
    small = ratio * 841 / 108 + 4 / 29
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), small).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def _distances(lab: np.ndarray, one: np.ndarray) -> np.ndarray:
    # Rounded: two machines' last bits must not choose different colours.
    return np.linalg.norm(lab - one, axis=1).round(6)
