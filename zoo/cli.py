"""The front door.  Each verb imports its room when it is called: ``--help`` loads no torch."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from zoo.errors import Exit, UsageError, ZooError

app = typer.Typer(
    name="zoo",
    help="Small vision transformers that learn from big ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE…", help="For example training.epochs=100."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/RECIPE]")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes.")] = False,
    show: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    reindex: Annotated[bool, typer.Option(help="Walk the whole data set again.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a checkpoint by a recipe; the same command continues an interrupted run."""
    from pretrain.recipe import as_record, find_recipe, list_recipes, summaries

    if list_:
        _print(summaries() if json_ else _lines(summaries()), json_)
        return
    if not recipe:
        raise UsageError(
            "which recipe?", where="zoo pretrain RECIPE", fix=f"one of: {', '.join(list_recipes())}"
        )
    resolved = find_recipe(recipe, overrides or [])
    folder = out or Path("runs") / resolved.name
    if show:
        record = as_record(resolved)
        _print(record if json_ else _lines(record), json_)
    elif nproc > 1:
        from pretrain.ranks import start_ranks

        start_ranks(nproc, sys.argv[1:], folder)
    else:
        from pretrain.launch import pretrain as run

        export = run(resolved, folder, reindex=reindex, device=device)
        if int(os.environ.get("RANK", "0")) == 0:
            _print({"export": str(export)} if json_ else f"model folder: {export}", json_)


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
    _print(result.as_dict() if json_ else result.line(), json_)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The .pth, as it was published.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The model's name.")],
    out: Annotated[Path, typer.Option(help="Where the model folder goes.")] = Path("models"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model folder of another project's weights: DINO's, MAE's or TinyMIM's."""
    from zoo.foreign.importer import import_file

    imported = import_file(file, name, out)
    _print(imported.as_dict() if json_ else imported.text(), json_)


@app.command("pull")
def pull_(
    model: Annotated[str, typer.Argument(help="A catalog name, org/name[@revision] or timm name.")],
    to: Annotated[Path | None, typer.Option(help="Also make a plain copy: a new folder.")] = None,
    offline: Annotated[bool, typer.Option(help="No request: what is in the cache.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model into the Hugging Face cache; every byte checked, continued where it stopped."""
    from zoo.hub import pull_model

    pulled = pull_model(model, to=to, offline=offline)
    _print(pulled.as_dict() if json_ else pulled.text(), json_)


@app.command("push")
def push_(
    source: Annotated[str, typer.Argument(metavar="RUN|DIR", help="A run, or a model folder.")],
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="Where on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    tag: Annotated[
        str | None, typer.Option(help="Publish marker.  [default: the next of v1, v2, …]")
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Of the weights, such as apache-2.0."),
    ] = None,
    acknowledge: Annotated[
        bool,
        typer.Option("--acknowledge-license", help="You hold the rights in the teacher's weights."),
    ] = False,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Trained on this data set of the Hub.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="The teacher.  [default: as recorded]")
    ] = None,
    about: Annotated[Path | None, typer.Option(help="Markdown for the page, your words.")] = None,
    results: Annotated[Path, typer.Option(help="Where zoo eval wrote.")] = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the page; send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Publish a model folder with its card: judged, in one commit, read back and tagged."""
    from zoo.package import packed, terms_of
    from zoo.push import push

    terms = terms_of(
        repo,
        license_=license_,
        acknowledged=acknowledge,
        datasets=dataset or [],
        base_model=base_model,
        about=about,
        results=results,
    )
    with packed(source, terms) as package:
        plan = package.as_dict()
        if not json_:
            print(package.text() + (f"\n\n{package.page()}" if dry_run else ""), flush=True)
        if dry_run:
            if json_:
                _print({**plan, "page": package.page()}, json_)
            return
        if sys.stdin.isatty() and not (yes or json_):
            typer.confirm(f"publish {len(package.files)} files as {repo}?", abort=True, err=True)
        pushed = push(package, private=private, tag=tag)
    _print({**plan, **pushed.as_dict()} if json_ else pushed.text(), json_)


@app.command("verify")
def verify_(
    model: Annotated[str, typer.Argument(help="A model folder, or any name.")],
    quick: Annotated[
        bool, typer.Option(help="Believe earlier hashing where size and time are the same.")
    ] = False,
    signer: Annotated[
        Path | None,
        typer.Option(metavar="KEY.pem", help="Public key of who must have signed the files."),
    ] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check a model's files, offline: its record, the Hub's listing, the publisher's signature."""
    from zoo.hub import pin_of
    from zoo.pull import cached_folder
    from zoo.signing import signer_from_file
    from zoo.verify import verify_folder

    key = signer_from_file(signer.expanduser()) if signer else None
    folder = Path(model).expanduser()
    if folder.is_dir():
        verified = verify_folder(folder, signer=key, quick=quick)
    else:
        pin = pin_of(model)
        verified = verify_folder(
            cached_folder(pin.source), pins=pin.sha256s, signer=key or pin.signer, quick=quick
        )
    _print(verified.as_dict() if json_ else verified.text(), json_)


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds ORG/NAME or NAME folders of models.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Where to listen.  Only this machine can reach the default.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the token for pushing.  [default: ZOO_SERVE_TOKEN, or one made]"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Reading needs the token, too.")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="A line a request, on stderr.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Be a small Hub on this machine: pull models from a folder, push into it.  Ctrl-C ends it."""
    from zoo.server.start import Server

    server = Server(
        folder, host=host, port=port, token_file=token_file, private=private, verbose=verbose
    )
    said = server.served.as_dict() if json_ else server.served.text()
    server.run(ready=lambda: (_print(said, json_), sys.stdout.flush()))


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
    """Measure how little the tokens of one image resemble one another, model by model."""
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
    _print(report.as_dict() if json_ else report.text(), json_)


@app.command("list")
def list_models(
    sort: Annotated[
        str, typer.Option(help="name, params, gflops, top1, ade20k, a, r or c.")
    ] = "name",
    task: Annotated[
        str | None, typer.Option(help="classification, segmentation or features.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="For example 30M or 5.7e6.")
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="TEXT", help="In the model's and every ancestor's."),
    ] = None,
    state: Annotated[str | None, typer.Option(help="hosted, importable or recipe.")] = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List the models of the catalog."""
    from zoo import listing
    from zoo.catalog import load_catalog

    catalog = load_catalog()
    found = listing.select(
        catalog, sort=sort, task=task, max_params=max_params, terms=license_, state=state
    )
    for problem in catalog.problems.values():
        print(f"skipped: {problem}", file=sys.stderr)
    _print(listing.as_dict(catalog, found) if json_ else listing.text(found), json_)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name of zoo list.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a model is, where it comes from, its scores and how to have it."""
    from zoo import info as page
    from zoo.catalog import load_catalog

    catalog = load_catalog()
    _print(page.as_dict(catalog, model) if json_ else page.text(catalog, model), json_)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own class folders.  [default: drawn images]")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Train a teacher, distil a student from it, and show what it learned.  CPU, some minutes."""
    from eval.demo import run_demo

    report = run_demo(out, data=data)
    _print(report.as_dict() if json_ else report.text(), json_)


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option(help="No request to the Hub.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Look at this machine: what is installed, what is wrong, and the command that mends it."""
    from zoo.doctor.examine import examine

    report = examine(offline=offline)
    _print(report.as_dict() if json_ else report.text(), json_)
    if report.worst == "bad":
        raise typer.Exit(Exit.USAGE)


def _lines(values: dict[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in values.items())


def _print(value: Any, as_json: bool) -> None:
    encoding = sys.stdout.encoding or "ascii"
    escaped = not encoding.lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=escaped) if as_json else str(value)
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; the exit code says what happened (see ``zoo.errors.Exit``)."""
    words = sys.argv[1:] if arguments is None else arguments
    # Read when torch is first imported.  Its threads otherwise wait for one another at full speed:
    # on a machine shared with other work, small networks train twenty times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = typer.main.get_command(app)
    try:
        # Not app(words): that turns Ctrl-C into a return value and a broken pipe into a failure.
        with command.make_context("zoo", list(words)) as context:
            command.invoke(context)
        sys.stdout.flush()  # a broken pipe shows here, where it is handled
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:  # piped into head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        sys.exit(_explain(error, words))
    sys.exit(Exit.DONE)


def _explain(error: Exception, words: list[str]) -> int:
    """Print an error as the reader asked for it; returns its exit code."""
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # typer's usage errors
        error = UsageError(error.format_message(), fix="zoo --help, or zoo VERB --help")  # type: ignore[attr-defined]
    if "--debug" in words:
        traceback.print_exception(error)
    if not isinstance(error, ZooError):
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        error = ZooError(
            f"unexpected: {what}", where="a bug in tinyzoo", fix="repeat with --debug and report it"
        )
    if "--json" in words:
        print(json.dumps(error.as_dict()))
    print(f"error: {error}", file=sys.stderr)
    return int(error.code)
