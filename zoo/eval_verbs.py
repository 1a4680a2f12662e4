"""The verbs that score models, and those that show what was scored.

Each imports what it needs when it is called.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import UsageError
from zoo.options import Debug, Json, aligned, answer

app = typer.Typer()


_Transform = Annotated[
    str, typer.Option(help="card, or how others resize: mae, timm, torchvision.")
]
_Pooling = Annotated[
    str | None,
    typer.Option(help="Of knn and linear: cls, or mean (of the patches).  [default: cls]"),
]
_Batch = Annotated[
    int | None, typer.Option(min=1, help="Images at once.  [default: 256 on CUDA, else 64]")
]
_Cache = Annotated[
    Path | None, typer.Option(help="Where probes keep features.  [default: the user's cache]")
]
_Run = Annotated[
    Path | None,
    typer.Option(help="Of a segmentation: run folder.  [default: runs/BENCHMARK-MODEL-DATA]"),
]
_Split = Annotated[
    str | None, typer.Option(help="Of ade20k-test: which images.  [default: validation]")
]
_FromScratch = Annotated[
    bool, typer.Option(help="Of a segmentation: begin with new weights, to compare with.")
]
_DumpConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.py",
        help="Of a segmentation: write it as a configuration for mmsegmentation's tools, and stop.",
    ),
]


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL… BENCHMARK [KEY=VALUE…]",
            help="Models (a folder, a name of zoo list, org/name or a timm name), then one of "
            "in1k-val, in1k-real, in1k-v2, in1k-a, in1k-r, in1k-sketch, in1k-c, all of these as "
            "robustness; own; a probe: knn, linear, linear-sweep, with in1k- before it for "
            "ImageNet's; or a segmentation, which trains: ade20k-upernet, upernet, each also with "
            "-plain; and ade20k-test of a run folder.  KEY=VALUE changes a segmentation's recipe.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Of the images; or SET=DIR, for each set."),
    ] = None,
    transform: _Transform = "card",
    partial: Annotated[bool, typer.Option(help="Take an incomplete set, and say so.")] = False,
    pooling: _Pooling = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    batch: _Batch = None,
    out: Annotated[Path, typer.Option(help="Where result files go.")] = Path("results"),
    cache: _Cache = None,
    run: _Run = None,
    split: _Split = None,
    from_scratch: _FromScratch = False,
    dump_config: _DumpConfig = None,
    show: Annotated[bool, typer.Option(help="Of a segmentation: print its recipe, stop.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Of a segmentation: ranks to start.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode, to score.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Score models, each image decoded once for all of them; or train a segmentation and score it.

    The same command continues an interrupted evaluation.
    """
    from eval.ask import Asked, ask

    asked = Asked(**{k: v for k, v in locals().items() if k in Asked.__dataclass_fields__})
    found = ask(asked)
    if found is not None and int(os.environ.get("RANK", "0")) == 0:
        answer(found.as_dict() if json_ else found.text(), json_)


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="A model folder, a name of zoo list, org/name…")],
    data: Annotated[
        Path, typer.Option(help="Class folders; or train/ and val/, each with class folders.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE…", help="For example training.epochs=20."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.  [default: runs/finetune-MODEL-DATA]")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option(help="Begin with new weights, to compare with.")
    ] = False,
    new_head: Annotated[
        bool, typer.Option(help="Replace the classifier that the model has.")
    ] = False,
    show: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    reindex: Annotated[bool, typer.Option(help="Walk the whole data set again.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Teach a model your own classes, or continue an interrupted run.

    The same command continues it.  How long and how strongly follows from how many images there
    are; --show tells, and KEY=VALUE changes it.
    """
    from eval.finetune_run import finetune as run
    from eval.finetune_run import plan_task

    task = plan_task(
        model,
        data,
        overrides=overrides or [],
        out=out,
        from_scratch=from_scratch,
        new_head=new_head,
        reindex=reindex,
        ranks=max(nproc, int(os.environ.get("WORLD_SIZE", "1"))),
        write=not show,
    )
    if show:
        from pretrain.recipe import as_record

        record = as_record(task.recipe)
        answer(record if json_ else aligned(record), json_)
    elif nproc > 1:
        from pretrain.ranks import Ranks, start_ranks

        start_ranks(Ranks(nproc=nproc), sys.argv[1:], task.run.path)
    elif report := run(task, device=device):
        answer(report.as_dict() if json_ else report.text(), json_)


@app.command()
def diversity(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL…",
            help="Folder, hf-hub:org/name or timm name; of a convnet NAME:stride16.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="A folder of images; with train/ and val/, train/.")],
    images: Annotated[int, typer.Option(min=2, help="How many, evenly spaced.")] = 10_000,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels.  [default: the first model's own input]")
    ] = None,
    cell: Annotated[
        int | None,
        typer.Option(min=1, help="Common cell, in pixels.  [default: 32, or the coarsest model's]"),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW,COL", help="Query tokens of the heat-maps, each in [0, 1)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Page and figures.")] = Path("runs/diversity"),
    results: Annotated[Path, typer.Option(help="Where result files go.")] = Path("results"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how little the tokens of an image resemble one another."""
    from eval.diversity_page import QUERIES, parse_query
    from eval.diversity_run import run_diversity

    report = run_diversity(
        models,
        data,
        out=out,
        results=results,
        images=images,
        image_size=image_size,
        cell=cell,
        queries=[parse_query(text) for text in query] if query else QUERIES,
        workers=workers,
        device=device,
    )
    answer(report.as_dict() if json_ else report.text(), json_)


@app.command()
def results(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR…", help="Where zoo eval wrote.  [default: results]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only this one: its name, or its digest's beginning.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Only this one: in1k-val, or in1k-val@1.")
    ] = None,
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=NAME", help="Compare with this model's published figures."),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="What flipped from A to B: result files, or models."),
    ] = None,
    write: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help=".md, .json, .csv or .html; of --diff .csv or .json."),
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show what was scored, beside the papers' figures; or what flipped between two models."""
    from eval.results_verb import show_flips, show_table

    places, files = folders or [Path("results")], write or []
    if diff:
        if model or published:
            raise UsageError(
                "--diff takes neither --model nor --published",
                where="zoo results --diff A B",
                fix="name both models after --diff, and the benchmark by --benchmark",
            )
        shown = show_flips(places, *diff, benchmark=benchmark, write=files)
    else:
        shown = show_table(
            places, model=model, benchmark=benchmark, published=published or [], write=files
        )
    for note in shown.notes:
        print(f"skipped: {note}", file=sys.stderr)
    answer(shown.record if json_ else shown.text, json_)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/NAME.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's page: curves, live signal, how it ended; also while it goes on."""
    from eval.run_page import report as write

    found = write(run)
    answer(found.as_dict() if json_ else found.text(), json_)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own class folders.  [default: drawn images]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Train teachers and students on the CPU; show what they learned."""
    from eval.demo import run_demo

    report = run_demo(out, data=data)
    answer(report.as_dict() if json_ else report.text(), json_)
