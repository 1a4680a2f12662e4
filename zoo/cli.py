"""The front door.  Each verb imports its room when it is called: ``--help`` loads no torch.

The verbs of ``zoo`` itself stand in ``zoo/verbs.py``, those of ``eval`` in ``zoo/eval_verbs.py``.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from zoo import eval_verbs, verbs
from zoo.errors import Exit, UsageError, ZooError, unexpected
from zoo.options import AllowChange, Debug, Json, aligned, answer

app = typer.Typer(
    name="zoo",
    help="Small vision transformers that learn from big ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(verbs.app)
app.add_typer(eval_verbs.app)
data_app = typer.Typer(help="Data sets to train on.  Each verb takes --json.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE…", help="For example training.epochs=100."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/RECIPE]")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the recipes; of RECIPE, its named overrides.")
    ] = False,
    show: Annotated[bool, typer.Option(help="Print the resolved recipe and stop.")] = False,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; give the same command on each.")] = 1,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where several machines meet.")
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="How often a lost rank may restart them all.")
    ] = 0,
    reindex: Annotated[bool, typer.Option(help="Walk the whole data set again.")] = False,
    allow_change: AllowChange = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a checkpoint by a recipe, or continue an interrupted run.

    The same command continues it.
    """
    from pretrain.recipe import as_record, find_recipe, list_recipes

    if list_:
        _list_recipes(recipe, json_)
        return
    if not recipe:
        raise UsageError(
            "which recipe?", where="zoo pretrain RECIPE", fix=f"one of: {', '.join(list_recipes())}"
        )
    resolved = find_recipe(recipe, overrides or [])
    folder = out or Path("runs") / resolved.name
    if show:
        record = as_record(resolved)
        answer(record if json_ else aligned(record), json_)
        return
    from pretrain.distributed import choose_device, require_devices
    from pretrain.ranks import Ranks, start_ranks

    ranks = Ranks(nproc=nproc, nodes=nodes, rendezvous=rendezvous, restarts=restarts)
    if ranks.by_torchrun:
        require_devices(choose_device(device), nproc)
        start_ranks(ranks, sys.argv[1:], folder)
    else:
        from eval.live_probe import probe
        from pretrain.launch import pretrain as run

        allow = allow_change or []
        export = run(resolved, folder, reindex=reindex, device=device, probe=probe, allow=allow)
        if int(os.environ.get("RANK", "0")) == 0:
            answer({"export": str(export)} if json_ else f"model folder: {export}", json_)


def _list_recipes(recipe: str, json_: bool) -> None:
    """All of them; or of one, its named overrides."""
    from pretrain.recipe import named_overrides, summaries

    if not recipe:
        answer(summaries() if json_ else aligned(summaries()), json_)
        return
    named = named_overrides(recipe)
    rows = {key: f"{n.figure}  {' '.join(n.overrides)}".strip() for key, n in named.items()}
    answer({k: asdict(n) for k, n in named.items()} if json_ else aligned(rows), json_)


@data_app.command("pack")
def data_pack(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Class folders, or images alone.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    shard_size_mb: Annotated[
        float, typer.Option(min=0.01, help="Most megabytes of a shard.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the order that is drawn.")] = 0,
    in_order: Annotated[
        bool, typer.Option(help="Keep the folder's order, sorted by name.")
    ] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make tar shards of an image folder, to train on as a stream.

    The files' bytes stay as they are; their order is drawn, because a stream is shuffled only
    within a buffer.
    """
    from pretrain.pack import pack

    size = int(shard_size_mb * 1_000_000)
    packed = pack(data, out, shard_bytes=size, seed=seed, in_order=in_order)
    answer(packed.as_dict() if json_ else packed.text(), json_)


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
        error = unexpected(error)
    if "--json" in words:
        _say(json.dumps(error.as_dict()), sys.stdout)
    _say(f"error: {error}", sys.stderr)
    return int(error.code)


def _say(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except OSError:  # it goes to a file, on the disk that is full: the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
