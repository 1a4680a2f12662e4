"""The verbs of the zoo itself: what a model is, and where it lives.

Each imports what it needs when it is called.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import Exit
from zoo.options import Debug, Json, answer

app = typer.Typer()


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
    answer(listing.as_dict(catalog, found) if json_ else listing.text(found), json_)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name of zoo list.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a model is, its lineage and scores, and how to have it."""
    from zoo import info as page
    from zoo.catalog import load_catalog

    catalog = load_catalog()
    answer(page.as_dict(catalog, model) if json_ else page.text(catalog, model), json_)


@app.command("pull")
def pull_(
    model: Annotated[str, typer.Argument(help="A catalog name, org/name[@revision] or timm name.")],
    to: Annotated[Path | None, typer.Option(help="Also make a plain copy: a new folder.")] = None,
    offline: Annotated[bool, typer.Option(help="No request: what is in the cache.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch a model, every byte checked; continue where it stopped.

    Into the standard Hugging Face cache, where timm and transformers find it.
    """
    from zoo.hub import pull_model

    pulled = pull_model(model, to=to, offline=offline)
    answer(pulled.as_dict() if json_ else pulled.text(), json_)


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
    """Check a model's files, offline.

    Against its record, the Hub's listing, the catalog's pin and the publisher's signature.
    """
    from zoo.files import is_there, typed_path
    from zoo.hub import pin_of
    from zoo.pull import cached_folder
    from zoo.signing import signer_from_file
    from zoo.verify import verify_folder

    key = signer_from_file(typed_path(signer)) if signer else None
    folder = typed_path(model)
    if is_there(folder):
        verified = verify_folder(folder, signer=key, quick=quick)
    else:
        pin = pin_of(model)
        verified = verify_folder(
            cached_folder(pin.source), pins=pin.sha256s, signer=key or pin.signer, quick=quick
        )
    answer(verified.as_dict() if json_ else verified.text(), json_)


Tag = Annotated[str | None, typer.Option(help="Publish marker.  [default: next of v1, v2, …]")]
License = Annotated[
    str | None, typer.Option("--license", metavar="ID", help="Of the weights, such as apache-2.0.")
]
Acknowledge = Annotated[
    bool,
    typer.Option("--acknowledge-license", help="You hold the rights in the teacher's weights."),
]
Datasets = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Trained on this data set of the Hub.")
]
BaseModel = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="The teacher.  [default: as recorded]")
]
Sign = Annotated[Path | None, typer.Option(metavar="KEY.pem", help="Sign with this private key.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show files and page; send nothing.")]


@app.command("push")
def push_(
    source: Annotated[str, typer.Argument(metavar="RUN|DIR", help="A run, or a model folder.")],
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="Where on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
    tag: Tag = None,
    license_: License = None,
    acknowledge: Acknowledge = False,
    dataset: Datasets = None,
    base_model: BaseModel = None,
    about: Annotated[Path | None, typer.Option(help="Markdown for the page, your words.")] = None,
    results: Annotated[Path, typer.Option(help="Where zoo eval wrote.")] = Path("results"),
    sign: Sign = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Publish a model folder with its card: one commit, then a tag.

    The files are judged and shown first, and read back before the tag is set.
    """
    from zoo.package import packed
    from zoo.push import push, require_tag
    from zoo.terms import terms_of

    require_tag(tag)
    terms = terms_of(
        repo,
        license_=license_,
        acknowledged=acknowledge,
        datasets=dataset or [],
        base_model=base_model,
        about=about,
        results=results,
        sign=sign,
    )
    with packed(source, terms) as package:
        if not json_:
            answer(package.text() + (f"\n\n{package.page()}" if dry_run else ""), False)
            sys.stdout.flush()
        if not dry_run and not (yes or json_) and sys.stdin.isatty():
            question = f"publish {len(package.files)} files as {repo}?"
            if not typer.confirm(question, err=True):
                print("nothing was sent", file=sys.stderr)
                raise typer.Exit(Exit.INTERRUPTED)
        plan = package.as_dict() | ({"page": package.page()} if dry_run else {})
        pushed = None if dry_run else push(package, private=private, tag=tag)
    if json_:
        done = pushed.as_dict() if pushed else {"notes": []}
        answer(plan | done | {"notes": [*plan["notes"], *done["notes"]]}, json_)
    elif pushed:
        answer(pushed.text(), json_)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The .pth, as it was published.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The model's name.")],
    out: Annotated[Path, typer.Option(help="Where the model folder goes.")] = Path("models"),
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Make a model folder of weights of DINO's, MAE's or TinyMIM's."""
    from zoo.foreign.importer import import_file

    imported = import_file(file, name, out)
    answer(imported.as_dict() if json_ else imported.text(), json_)


@app.command("export")
def export_(
    model: Annotated[str, typer.Argument(help="A model folder, a catalog name or org/name.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder of images to compare on.  [required]")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    out: Annotated[
        Path, typer.Option(help="The file (….onnx), or the folder that it goes to.")
    ] = Path("models"),
    opset: Annotated[int, typer.Option(help="18 … 23.")] = 20,
    images: Annotated[int, typer.Option(help="How many to compare on, evenly spaced.")] = 64,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as an ONNX file, compared on real images.

    It computes the same for any batch size; how nearly stands beside it.
    """
    from zoo.export import export

    exported = export(model, format=format_, data=data, out=out, opset=opset, images=images)
    answer(exported.as_dict() if json_ else exported.text(), json_)


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
    """Be a small Hub on this machine, of a folder of models.

    Pull from it and push into it; Ctrl-C ends it.
    """
    from zoo.server.start import Server

    server = Server(
        folder, host=host, port=port, token_file=token_file, private=private, verbose=verbose
    )
    said = server.served.as_dict() if json_ else server.served.text()
    server.run(ready=lambda: (answer(said, json_), sys.stdout.flush()))


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option(help="No request to the Hub.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Say what is installed, what is wrong, and how to mend it."""
    from zoo.doctor.examine import examine

    report = examine(offline=offline)
    answer(report.as_dict() if json_ else report.text(), json_)
    if report.worst == "bad":
        raise typer.Exit(Exit.USAGE)
