"""The verbs that score models, and those that show what was scored.

Each imports what it needs when it is called.
"""

from pathlib import Path
from typing import Annotated

import typer

from zoo.options import Debug, Json, answer

app = typer.Typer()


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, hf-hub:org/name or timm name.")],
    benchmark: Annotated[str, typer.Argument(help="knn")],
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/ class folders.")],
    pooling: Annotated[str, typer.Option(help="cls, or mean (of the patch tokens).")] = "cls",
    out: Annotated[Path, typer.Option(help="Where the result file goes.")] = Path("results"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model."""
    from eval.run import evaluate as run

    result = run(
        model, benchmark, data, pooling=pooling, workers=workers, device=device, results=out
    )
    answer(result.as_dict() if json_ else result.line(), json_)


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
