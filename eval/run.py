"""``zoo eval``: models, a benchmark, data; a result for each model."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from eval.classes import CLASSES, synsets
from eval.classify import DTYPES, Scored, Settings, can_score, open_ways, score
from eval.finetuned import FINETUNED, require_finetuned
from eval.layouts import EvalSet, open_eval_set
from eval.outcome import result_of
from eval.predictions import save_with_predictions
from eval.probes import PROBES, evaluate_probe
from eval.protocols import PROTOCOLS, Protocol, find_protocol
from eval.results import Result
from eval.scorecard import scorecard
from eval.scoring import require_head
from eval.segmentation.protocols import SEGMENTATION
from eval.sets import find_sets, parse_data, set_of
from eval.transforms import CARD, resolve
from pretrain.distributed import World, start_world
from zoo.errors import DataError, UsageError
from zoo.folder import Classifier, count_classes, load_classifier
from zoo.hub import locate

ROBUSTNESS = "robustness"
FAMILY = ("in1k-val", "in1k-real", "in1k-v2", "in1k-a", "in1k-r", "in1k-sketch", "in1k-c")
"""What ``robustness`` runs, with the clean companions of A and R."""

_WEEK = 7 * 86_400
_BATCH = {"cuda": 256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What may be asked of an evaluation beside its models, benchmark and data."""

    transform: str = CARD
    """``card``, or a family of ``eval.transforms``."""
    dtype: str = "float32"
    partial: bool = False
    """Take an incomplete set; the result says so."""
    pooling: str | None = None
    """Of a probe: ``cls``, where not given, or ``mean``."""
    batch: int | None = None
    """Images at once; by the device where not given."""
    workers: int = 2
    device: str = "auto"
    out: Path = Path("results")
    cache: Path | None = None
    """Where probes keep features; the user's cache where not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found: on rank 0; the others know nothing."""

    results: list[Result]
    missing: dict[str, str] = field(default_factory=dict)
    """Protocols that were asked for and not run, each with the reason."""

    def text(self) -> str:
        """A line for each result; a card for each model where there are several."""
        return scorecard(self.results, self.missing)

    def as_dict(self) -> dict[str, Any]:
        """One result as it is; several in a list, beside what is missing."""
        if len(self.results) == 1 and not self.missing:
            return self.results[0].as_dict()
        return {"results": [r.as_dict() for r in self.results], "missing": self.missing}


def evaluate(
    models: Sequence[str], benchmark: str, data: Sequence[str], options: Options
) -> Evaluation:
    """Score models (folders, Hub or timm names); results are also written below ``options.out``.

    data: ``DIR``, or ``SET=DIR`` for each of several sets; for ``robustness`` a folder that holds
    the sets.  Under torchrun every rank calls this, and rank 0 has the results.  Raises UsageError,
    DataError, IntegrityError, PreemptedError, DiskError, NetworkError.
    """
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice or not models:
        raise UsageError(
            f"a model is named twice: {twice[0]}" if twice else "which model, or which benchmark?",
            where=f"zoo eval MODEL… BENCHMARK; given: {' '.join([*models, benchmark])}",
            fix="name each model once" if twice else "name a model, and after it a benchmark",
        )
    require_known(benchmark)
    _require_used(benchmark, options)
    if benchmark.partition("@")[0] in PROBES:
        return _probe(models, benchmark, data, options)
    if options.dtype not in DTYPES:
        raise UsageError(
            f"no precision is called {options.dtype!r}",
            where="--dtype",
            fix=f"choose one of: {', '.join(DTYPES)}",
        )
    protocols, places, missing = _resolve(benchmark, data)
    with start_world(options.device, timeout_seconds=_WEEK) as world:
        nets = [_classifier(name, protocols) for name in models]
        _require_different(nets)
        opened = {
            name: world.main_first(lambda p=place, n=name: _open(p, n, options.partial))
            for name, place in places.items()
        }
        protocols, empty = _require_images(protocols, opened)
        results = _score_all(nets, protocols, opened, options, world)
    return Evaluation(results=results, missing={**missing, **empty})


def require_known(benchmark: str) -> None:
    """Raise UsageError for a benchmark that there is not, with the nearest one."""
    classified = dict.fromkeys(p.name for p in PROTOCOLS.values())
    known = [ROBUSTNESS, *classified, *PROBES, *sorted(SEGMENTATION)]
    name = benchmark.partition("@")[0]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"no benchmark is called {benchmark!r}" + (f": {close[0]}?" if close else ""),
            where="zoo eval MODEL… BENCHMARK",
            fix=f"choose one of: {', '.join(known)}",
        )


def _require_used(benchmark: str, options: Options) -> None:
    """Raise UsageError for an option that the benchmark would not look at."""
    probe = benchmark.partition("@")[0] in PROBES
    unused = {
        "--batch": probe and options.batch is not None,
        "--pooling": options.pooling is not None and (not probe or "sweep" in benchmark),
        "--cache": not probe and options.cache is not None,
    }
    if any(unused.values()):
        option = next(name for name, given in unused.items() if given)
        raise UsageError(
            f"{benchmark} takes no {option}", where="zoo eval", fix=f"leave {option} out"
        )


def _probe(
    models: Sequence[str], benchmark: str, data: Sequence[str], options: Options
) -> Evaluation:
    """Score frozen features."""
    plain, named = parse_data(data)
    if plain is None or named:
        raise UsageError(
            f"{benchmark} takes one data folder",
            where="--data",
            fix="give --data DIR, with train/ and val/ below it",
        )
    results = [
        evaluate_probe(
            name,
            benchmark,
            Path(plain),
            pooling=options.pooling or "cls",
            partial=options.partial,
            transform=options.transform,
            workers=options.workers,
            device=options.device,
            dtype=options.dtype,
            cache=options.cache,
            out=options.out,
        )
        for name in models
    ]
    return Evaluation(results=results)


def _resolve(
    benchmark: str, data: Sequence[str]
) -> tuple[list[Protocol], dict[str, Path | str], dict[str, str]]:
    """Protocols to run, the place of each set they need, and what cannot be run and why."""
    plain, named = parse_data(data)
    if benchmark == ROBUSTNESS:
        found = (
            {name: str(place) for name, place in find_sets(Path(plain)).items()} if plain else {}
        )
        places = {**found, **named}
        asked = [find_protocol(name) for name in FAMILY]
    else:
        protocol = find_protocol(benchmark)
        places = {set_of(protocol.name): plain, **named} if plain else named
        asked = [protocol]
    asked = [q for p in asked for q in (p, PROTOCOLS.get(p.companion)) if q]
    missing = {
        p.id: f"no {set_of(p.name)} was found: --data {set_of(p.name)}=DIR"
        for p in asked
        if set_of(p.name) not in places
    }
    run = [p for p in asked if p.id not in missing]
    if not run or (benchmark != ROBUSTNESS and asked[0].id in missing):
        raise UsageError(
            f"{benchmark} needs the images of {set_of(asked[0].name)}",
            where="--data",
            fix=f"give --data DIR, or --data {set_of(asked[0].name)}=DIR",
        )
    needed = {set_of(p.name) for p in run}
    return run, {name: place for name, place in places.items() if name in needed}, missing


def _require_images(
    protocols: Sequence[Protocol], opened: dict[str, EvalSet]
) -> tuple[list[Protocol], dict[str, str]]:
    """Those that have images here; and the others, each with the reason.

    Raises DataError where the first, which was asked for, has none.
    """
    empty = [p for p in protocols if not can_score(p, opened[set_of(p.name)])]
    if protocols[0] in empty:
        raise DataError(
            "no image here is of the benchmark's classes",
            where=f"{protocols[0].id}: {opened[set_of(protocols[0].name)].listing.place}",
            fix="give images of its classes",
        )
    why = {p.id: "no image here is of its classes" for p in empty}
    return [p for p in protocols if p not in empty], why


def _open(place: Path | str, name: str, partial: bool) -> EvalSet:
    return open_eval_set(Path(place), name, partial=partial)


def _classifier(name: str, protocols: Sequence[Protocol]) -> Classifier:
    """A model whose head fits the protocols.  Raises DataError before any weight is read."""
    folder = locate(name)
    outputs = count_classes(folder)
    for protocol in protocols:
        require_head(outputs, protocol)
    found = load_classifier(folder)
    if any(p.name == FINETUNED for p in protocols):
        require_finetuned(found)
    ours = [p.id for p in protocols if p.subset != "own"]
    if ours and found.labels and found.labels != synsets():
        raise DataError(
            f"the head's {CLASSES:,} classes are not ImageNet's, or not in its order",
            where=f"{found.name}: {', '.join(found.labels[:3])}, …; {ours[0]} has "
            f"{', '.join(synsets()[:3])}, …",
            fix="score it on its own classes: zoo eval MODEL own --data DIR",
        )
    return found


def _require_different(nets: Sequence[Classifier]) -> None:
    """Raise UsageError for one model under two names."""
    names: dict[str, str] = {}
    for net in nets:
        if net.digest in names:
            raise UsageError(
                f"{net.name} and {names[net.digest]} are the same network with the same weights",
                where=str(net.folder),
                fix="name it once",
            )
        names[net.digest] = net.name


def _score_all(
    nets: Sequence[Classifier],
    protocols: Sequence[Protocol],
    opened: dict[str, EvalSet],
    options: Options,
    world: World,
) -> list[Result]:
    settings = Settings(
        dtype=options.dtype,
        batch=options.batch or _BATCH.get(world.device.type, 64),
        workers=options.workers,
        store=options.out,
    )
    for net in nets:
        net.net.to(world.device)
    results: list[Result] = []
    with progress(world) as start, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name, images in opened.items():
            of_set = [p for p in protocols if set_of(p.name) == name]
            models = [(net, resolve(net.preprocess, of_set[0], options.transform)) for net in nets]
            ways = open_ways(models, of_set, images, settings, world.device)
            score(
                ways,
                images,
                settings,
                world,
                write=lambda found, images=images: results.append(
                    _write(found, images, options, world)
                ),
                advance=start(name, len(images)),
            )
    order = {p.id: number for number, p in enumerate(protocols)}
    names = {net.digest: number for number, net in enumerate(nets)}
    return sorted(results, key=lambda r: (names[r.model_digest], order[r.protocol]))


def _write(found: Scored, images: EvalSet, options: Options, world: World) -> Result:
    """Write the predictions, then the result that names their file.  Raises DiskError."""
    result = result_of(found, images, transform=options.transform, dtype=options.dtype, world=world)
    names = [images.where(i) for i in found.predictions.samples.tolist()]
    own = found.protocol.subset == "own"
    classes = (found.model.labels or images.classes) if own else ()
    return save_with_predictions(
        options.out, result, found.predictions, names=names, classes=classes
    )


@contextmanager
def progress(world: World) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Bars on stderr, on a terminal and on rank 0 alone."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not (world.is_main and console.is_terminal)) as bars:

        def start(name: str, images: int) -> Callable[[int], None]:
            task = bars.add_task(name, total=-(-images // world.size))
            return lambda count: bars.advance(task, count)

        yield start
