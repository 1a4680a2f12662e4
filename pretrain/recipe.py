"""Recipes: typed, complete, found by name, overridden by ``key.path=value``.

A recipe file is a function of its own name that returns a ``Recipe``.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.resources
import importlib.util
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError

from pretrain.data import Data
from pretrain.live import Signal
from pretrain.loop import Training
from pretrain.objective import Objective
from zoo.convnet import ConvnetConfig
from zoo.errors import UsageError
from zoo.vit import ViTConfig


class Method(Protocol):
    """A method's configuration: it knows how to build its objective."""

    name: ClassVar[str]

    def build(self, student: Any, *, seed: int, device: torch.device) -> Objective:
        """The objective, on ``device``.  Raises before step 0 whatever could not work.

        student: the network's configuration, of the kind that the method trains.
        """
        ...


Student = TypeVar("Student", ViTConfig, ConvnetConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Generic[Student]):
    """Everything that makes a checkpoint."""

    name: str
    student: Student
    method: Method
    data: Data
    training: Training
    signal: Signal = dataclasses.field(default_factory=Signal)


class _Named(Protocol):
    """A recipe of any kind: a dataclass with a name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...


AnyRecipe = TypeVar("AnyRecipe", bound=_Named)

_KeyValue = Annotated[str, Field(pattern="^[^=]+=")]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedOverrides:
    """Overrides that a recipe's file gives a name: a row of a paper's table, a common variant."""

    overrides: list[str]
    figure: str = ""
    """What the paper has for it; empty where there is no such figure."""


_NAMED = TypeAdapter(dict[str, list[_KeyValue] | tuple[str, list[_KeyValue]]])
_MANY = 5
"""Named overrides of a recipe that a list of all recipes still shows one by one."""


def list_recipes() -> list[str]:
    """The names of all shipped recipes."""
    files = importlib.resources.files("configs").iterdir()
    names = [f.name for f in files if f.name.endswith(".py") and not f.name.startswith("_")]
    return sorted(name.removesuffix(".py").replace("_", "-") for name in names)


def summaries() -> dict[str, str]:
    """Every shipped recipe's name and the first line of its file's docstring."""
    found = {}
    for name in list_recipes():
        tree = ast.parse(_place_of(name).read_text())
        found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
        named = named_overrides(name)
        if len(named) > _MANY:
            found[name] += f" Or one of {len(named)}: zoo pretrain --list {name}."
        elif named:
            found[name] += f" Or: {', '.join(named)}."
    return found


def named_overrides(name: str) -> dict[str, NamedOverrides]:
    """The named overrides of a recipe: what its file's ``NAMED`` says, read without running it.

    ``{"name": ["key.path=value", …]}``, or with the paper's figure: ``("84.2", […])``.  Raises
    UsageError.
    """
    place = _place_of(name)
    try:
        for node in ast.parse(place.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMED":
                named = _NAMED.validate_python(ast.literal_eval(node.value), strict=True)
                return {
                    key: NamedOverrides(overrides=entry)
                    if isinstance(entry, list)
                    else NamedOverrides(figure=entry[0], overrides=entry[1])
                    for key, entry in named.items()
                }
    except (SyntaxError, ValueError) as error:  # a ValidationError is a ValueError
        raise UsageError(
            f"a recipe file that cannot be read: {str(error).splitlines()[0]}",
            where=str(place),
            fix='NAMED is plain values: {"name": ["key.path=value", …]}',
        ) from error
    return {}


def recipe_function(name: str) -> Callable[[], Recipe]:
    """The function that makes a recipe: a shipped name, or the path of a recipe file.

    Raises UsageError.
    """
    place = _place_of(name)
    stem = place.stem
    spec = importlib.util.spec_from_file_location(f"configs.{stem}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, stem, None)
    if function is None:
        raise UsageError(
            f"a recipe file defines a function of its own name, here {stem}()",
            where=str(place),
            fix=f"define: def {stem}() -> Recipe",
        )
    return function


def _place_of(name: str) -> Path:
    """The file of a shipped recipe's name, or of the path of a recipe file.  Raises UsageError."""
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    if name in list_recipes():
        stem = name.replace("-", "_")
        return Path(str(importlib.resources.files("configs") / f"{stem}.py"))
    raise UsageError(
        f"no recipe is called {name!r}" + _did_you_mean(name, list_recipes()),
        where=f"shipped recipes: {', '.join(list_recipes())}",
        fix="choose one of them, or give the path of a recipe file",
    )


def find_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of this name with overrides, every field checked.

    overrides: ``key.path=value``, or the name of overrides that the recipe's file lists; a name
    is added to the recipe's own.  Raises UsageError.
    """
    known = {key: named.overrides for key, named in named_overrides(name).items()}
    return override(recipe_function(name)(), overrides, known)


def override(
    recipe: AnyRecipe,
    overrides: Iterable[str],
    known: Mapping[str, list[str]] = MappingProxyType({}),
) -> AnyRecipe:
    """A recipe with overrides, every field checked.

    overrides: ``key.path=value``, or the name of some among the ``known``; a name is added to the
    recipe's own.  Raises UsageError.
    """
    texts: dict[str, str] = {}
    came_from: dict[str, str] = {}
    suffix, name = "", recipe.name
    for given in overrides:
        for entry in known.get(given, [given]):
            key, equals, text = entry.partition("=")
            if not equals:
                raise UsageError(
                    f"an override is key.path=value, not {entry!r}"
                    + _did_you_mean(entry, list(known)),
                    where=f"recipe {name}"
                    + (f"; its named ones: {', '.join(known)}" if known else ""),
                    fix="for example training.epochs=100",
                )
            if key in texts and {given, came_from[key]} & known.keys():
                raise UsageError(
                    f"{given!r} sets {key}, which {came_from[key]!r} has set already",
                    where=f"recipe {name}",
                    fix="give one of them",
                )
            texts[key], came_from[key] = text, given
        suffix += f"-{given}" if given in known else ""
    recipe = _replace(recipe, [(key.split("."), key) for key in texts], texts)
    _check(recipe)
    return dataclasses.replace(recipe, name=recipe.name + suffix)


def _replace(owner: Any, keys: list[tuple[list[str], str]], texts: Mapping[str, str]) -> Any:
    """``owner`` with these fields, given as (path from here, whole key), made anew.

    All at once: sizes that fit together need not fit what they replace one by one.
    """
    changed: dict[str, Any] = {}
    below: dict[str, list[tuple[list[str], str]]] = {}
    for (name, *rest), key in keys:
        kind = _field(owner, [name, *rest], key)
        value = getattr(owner, name)
        if rest and dataclasses.is_dataclass(value):
            below.setdefault(name, []).append((rest, key))
        elif rest:
            raise UsageError(
                f"{key.removesuffix('.' + '.'.join(rest))!r} has no parts: {rest} leads nowhere",
                where=f"override {key}={texts[key]}",
                fix="correct the key",
            )
        elif dataclasses.is_dataclass(value):
            parts = ", ".join(f"{key}.{k}" for k, _ in flatten(value))
            raise UsageError(f"{key!r} has parts", where=parts, fix="override one of them")
        else:
            changed[name] = _parse(kind, texts[key], key)
    for name, deeper in below.items():
        changed[name] = _replace(getattr(owner, name), deeper, texts)
    return dataclasses.replace(owner, **changed)


def _field(owner: Any, path: list[str], key: str) -> Any:
    """The type of the field that the path begins with.  Raises UsageError for an unknown one."""
    fields = _fields(owner)
    if path[0] not in fields:
        valid = [k for k, _ in flatten(owner, key.removesuffix(".".join(path)))]
        raise UsageError(
            f"unknown recipe key {key!r}" + _did_you_mean(key, valid),
            where=f"valid keys here: {', '.join(valid)}",
            fix="correct the key",
        )
    return fields[path[0]]


def _parse(kind: Any, text: str, key: str) -> Any:
    adapter = TypeAdapter(kind)
    with contextlib.suppress(ValidationError):  # not JSON, or of another type: perhaps plain text
        return adapter.validate_json(text, strict=True)
    if text.startswith("[") and text.endswith("]"):  # words, which a shell would strip of quotes
        with contextlib.suppress(ValidationError):
            words = tuple(word.strip() for word in text[1:-1].split(","))
            return adapter.validate_python(words, strict=True)
    try:
        return adapter.validate_python(text, strict=True)
    except ValidationError as error:
        raise _wrong_type(key, text, kind, error) from error


def _check(owner: Any, prefix: str = "") -> None:
    for name, kind in _fields(owner).items():
        value = getattr(owner, name)
        if dataclasses.is_dataclass(value):
            _check(value, f"{prefix}{name}.")
            continue
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise _wrong_type(prefix + name, value, kind, error) from error


def _wrong_type(key: str, value: Any, kind: Any, error: ValidationError) -> UsageError:
    return UsageError(
        f"recipe key {key!r} cannot be {value!r}: {error.errors()[0]['msg']}",
        where=f"{key} takes {_spell(kind)}",
        fix="give a value of that type (null for none, [a, b] for several)",
    )


def _spell(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bounds = [repr(a) for group in arguments[1:] for a in getattr(group, "metadata", [group])]
        return f"{_spell(arguments[0])} ({', '.join(bounds)})"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_spell(a) for a in arguments)
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in arguments)
    if kind is type(None):
        return "null"
    return kind.__name__ if isinstance(kind, type) and not arguments else str(kind)


def _fields(owner: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(type(owner), include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(owner)}


def _did_you_mean(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def flatten(owner: Any, prefix: str = "", *, runtime: bool = True) -> Iterator[tuple[str, Any]]:
    """Every leaf of a recipe as (``key.path``, value).

    runtime=False leaves out what may change between two starts of one run (worker count, how
    often to save): it does not reach the weights.
    """
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.", runtime=runtime)
        elif runtime or not field.metadata.get("runtime"):
            yield prefix + field.name, value


def as_record(recipe: Any, *, runtime: bool = True) -> dict[str, Any]:
    """A recipe as flat JSON: ``{"student.width": 384, ...}``, the method by its name."""
    record = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in flatten(recipe, runtime=runtime)
    }
    return {"method": recipe.method.name, **record}


def differences(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Human-readable differing fields of two records."""
    return [
        f"{key}: {earlier.get(key, 'absent')!r} → {now.get(key, 'absent')!r}"
        for key in sorted(earlier.keys() | now.keys())
        if earlier.get(key, "absent") != now.get(key, "absent")
    ]
