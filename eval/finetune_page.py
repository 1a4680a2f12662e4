"""A fine-tuning's page: what it reached, its curves, and what the classifier takes for what."""

from pathlib import Path
from typing import Any

import torch

from eval.confusion import (
    MOST_DRAWN,
    Guesses,
    classes_table,
    guess,
    matrix_figure,
    mistakes_figure,
    pairs_table,
)
from eval.finetune import standard_error
from eval.report import Page, Table, curves
from pretrain.index import ImageIndex
from pretrain.log import read_log
from pretrain.recipe import Recipe, as_record
from pretrain.run import RunFolder
from zoo.folder import Classifier, load_classifier
from zoo.leaks import portable

NAME = "report.html"


def write_page(
    run: RunFolder,
    recipe: Recipe,
    validation: ImageIndex,
    notes: dict[str, Any],
    *,
    device: torch.device,
) -> Path:
    """Write ``report.html`` into the run folder.  notes: of the last checkpoint.

    Raises DataError, IntegrityError, DiskError.
    """
    model = load_classifier(run.export)
    guesses = guess(model, validation, device=device, workers=recipe.data.workers)
    page = Page(recipe.name, f"{model.classes:,} classes, {len(validation):,} validation images")
    _tell_result(page, model, notes, len(validation))
    _tell_curves(page, run, notes)
    _tell_confusion(page, guesses, validation, model)
    page.heading("The recipe")
    record = portable(as_record(recipe))
    page.table(
        Table(
            columns=["field", "value"],
            rows=[[key, str(value)] for key, value in record.items()],
            sides=["left", "left"],
        )
    )
    place = run.path / NAME
    page.write(place)
    return place


def _tell_result(page: Page, model: Classifier, notes: dict[str, Any], images: int) -> None:
    last, best = notes["validation"], notes["best"]
    rows = []
    for name, told in (("last epoch: export/", last), ("best epoch: export-best/", best)):
        scores = told["scores"]
        error = standard_error(scores["top1"], images)
        rows.append(
            [
                name,
                f"{told['epoch']:g}",
                f"{scores['top1']:.2f} ± {error:.2f}",
                f"{scores['top5']:.2f}" if "top5" in scores else "–",
                f"{scores['loss']:.3f}",
            ]
        )
    page.table(
        Table(
            columns=["weights", "epoch", "top-1, %", "top-5, %", "loss"], rows=rows, highlight=[0]
        )
    )
    base = model.card.base if model.card else None
    began = f"from {base.name} (digest {base.digest[:12]})" if base else "from scratch"
    page.text(
        f"Trained {began}. ± is one standard error over the validation images. The best epoch was "
        "chosen on these very images, which flatters it: the last one is the fair figure."
    )


def _tell_curves(page: Page, run: RunFolder, notes: dict[str, Any]) -> None:
    rows = read_log(run.log)
    trained = [row for row in rows if "total" in row]
    scored = [row for row in rows if "val_top1" in row]
    per_epoch = notes["validation"]["step"] / notes["validation"]["epoch"]
    epochs = [row["step"] / per_epoch for row in trained]
    at = [row["epoch"] for row in scored]
    page.heading("Training")
    page.figure(
        curves(
            {"validation": (at, [row["val_top1"] for row in scored])},
            ylabel="top-1, %",
            xlabel="epoch",
        ),
        "Share of the validation images that are recognised, after every epoch.",
        f"The accuracy goes from {scored[0]['val_top1']:.1f} % to {scored[-1]['val_top1']:.1f} %.",
    )
    page.figure(
        curves(
            {
                "training": (epochs, [row["total"] for row in trained]),
                "validation": (at, [row["val_loss"] for row in scored]),
            },
            ylabel="loss",
            xlabel="epoch",
        ),
        "Cross-entropy. In training it is that of varied images and softened labels, and so need "
        "not lie below the validation's.",
        f"The training loss goes from {trained[0]['total']:.2f} to {trained[-1]['total']:.2f}.",
    )
    page.figure(
        curves(
            {"rate": (epochs, [row["lr"] for row in trained])},
            ylabel="learning rate",
            xlabel="epoch",
        ),
        "Learning rate of the head; blocks below it learn more slowly.",
        "The rate rises at first and then falls along half a cosine.",
    )


def _tell_confusion(
    page: Page, guesses: Guesses, validation: ImageIndex, model: Classifier
) -> None:
    page.heading("What is taken for what")
    if len(guesses.names) <= MOST_DRAWN:
        page.figure(
            matrix_figure(guesses),
            "Validation images by true class (row) and by what they were taken for (column); the "
            "colour is the share of the row.",
            "A matrix; most images lie on its diagonal."
            if guesses.top1 > 50
            else "A matrix; most images lie off its diagonal.",
        )
    page.table(classes_table(guesses))
    if not guesses.mistakes():
        page.text("No validation image was taken for another class.")
        return
    page.heading("The most frequent confusions")
    page.table(pairs_table(guesses))
    page.heading("The surest mistakes")
    page.figure(
        mistakes_figure(guesses, validation, model),
        "The validation images that were taken for another class with the greatest confidence: "
        "often the place to find wrong labels.",
        "Photographs with their true class, what they were taken for, and how surely.",
    )
