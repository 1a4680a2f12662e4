"""A model's page on the Hub, ``README.md``: front matter that timm and the Hub read, then facts.

Everything on it comes from the record, the network's layout and what a publisher states.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, constants

from zoo.card import Card, Score, TeacherRecord
from zoo.licenses import NOT_STATED, hub_license

_TOP1 = "top-1"
_MOST_LISTED = 100
"""Classes on a page; all of them are in config.json."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_CLASSIFY = """```python
import timm
import torch
from PIL import Image

model = timm.create_model("{source}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)

image = transform(Image.open("photo.jpg").convert("RGB"))
with torch.no_grad():
    chances = model(image.unsqueeze(0)).softmax(-1)[0]  # ({classes},)
names = model.pretrained_cfg.get("label_names") or range({classes})
for chance, number in zip(*chances.topk(min(5, {classes}))):
    print(f"{{chance:.1%}}  {{names[number]}}")
```"""
_OF_EVERY_SOURCE = ("file", "sha256", "format")


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What only the one who publishes a model knows of it."""

    repository: str
    """``org/name``"""
    datasets: tuple[str, ...] = ()
    """Ids of the Hub."""
    base_model: str | None = None
    """The teacher's repository, where it is published."""
    license_file: str | None = None
    """In the folder, where there is one."""
    about: str = ""
    """Markdown in the publisher's own words."""


def readme(
    card: Card,
    layout: Mapping[str, Any],
    parameters: int,
    publication: Publication | None = None,
) -> str:
    """The page.  layout: what ``config.json`` says."""
    data = _front_matter(card, layout, publication)
    classes = layout.get("num_classes") or 0
    parts = [
        f"# {card.name}",
        _what_it_is(card, layout["architecture"], parameters, classes),
        publication.about.strip() if publication else "",
        _how_to_use(card, classes, publication),
        *_origin(card),
        _fresh(card) if card.fresh_parameters else "",
        _classes(layout),
        _how_it_was_made(card),
        "## Scores\n\n" + _scores(card.scores),
        "## Licences\n\n" + "\n".join(f"- {part}: {name}" for part, name in card.licenses.items())
        if card.licenses
        else "",
        "The full record (recipe, data fingerprint, environment, digests) is `zoo.json`.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(
    card: Card, layout: Mapping[str, Any], publication: Publication | None
) -> ModelCardData:
    task = "image-classification" if layout.get("num_classes") else "image-feature-extraction"
    link = _license_link(publication)
    terms = hub_license(card.licenses.get("weights", NOT_STATED), link)
    return ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=[
            *("timm", "transformers", task),
            *([] if layout.get("num_classes") else ["self-supervised"]),
            card.method,
            "convnet" if card.heads is None else "vit",
        ],
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link,
        datasets=list(publication.datasets) or None if publication else None,
        base_model=publication.base_model if publication else None,
        model_name=card.name,
        eval_results=[_eval_result(task, score) for score in card.scores] or None,
        metrics=sorted({_metric_type(score) for score in card.scores}) or None,
    )


def _license_link(publication: Publication | None) -> str:
    """Where the text of a licence stands that the Hub does not list: LICENSE, or an address."""
    if publication is None:
        return "zoo.json"
    if publication.license_file in {"LICENSE", "LICENSE.md"}:
        return publication.license_file
    file = publication.license_file or "zoo.json"
    return f"{constants.ENDPOINT}/{publication.repository}/blob/main/{file}"


def _eval_result(task: str, score: Score) -> EvalResult:
    """A line of the model-index: the protocol stands in the metric's name, the evidence beside."""
    return EvalResult(
        task_type="image-classification" if score.metric == _TOP1 else task,
        dataset_type=score.data,
        dataset_name=score.data,
        dataset_revision=score.data_fingerprint,
        metric_type=_metric_type(score),
        metric_value=score.value,
        metric_name=f"{score.protocol} {score.metric}" + _settings(score),
        metric_args={
            "standard_error": score.standard_error,
            "samples": score.samples,
            "settings": score.settings,
        },
    )


def _settings(score: Score) -> str:
    text = ", ".join(f"{key} {value}" for key, value in score.settings.items())
    return f" ({text})" if text else ""


def _metric_type(score: Score) -> str:
    # The Hub's own name of it; others keep theirs.
    return "accuracy" if score.metric == _TOP1 else score.metric.replace(" ", "_")


def _what_it_is(card: Card, architecture: str, parameters: int, classes: int) -> str:
    is_vit = card.heads is not None
    kind = "vision transformer" if is_vit else "convolutional network"
    network = f"timm `{architecture}`" + (f", {card.heads} heads" if is_vit else "")
    made = f"pre-trained with {card.method}"
    if card.base:
        made = f"fine-tuned from {card.base.name}"
    if classes:
        made = f"a classifier of {classes:,} classes, " + made.replace("pre-trained", "trained")
    return (
        f"A {parameters / 1e6:.1f} M-parameter {kind} ({network}), {made}"
        + (f" for {card.steps:,} steps" if card.steps else "")
        + f" ({card.weights} weights)."
    )


def _how_to_use(card: Card, classes: int, publication: Publication | None) -> str:
    token_shape = "(B, tokens, width), class token first"
    shape = "(B, channels, rows, columns)" if card.heads is None else token_shape
    source = f"hf-hub:{publication.repository}" if publication else "local-dir:PATH"
    if classes:
        return _CLASSIFY.format(source=source, classes=classes)
    return (
        "```python\nimport timm\n\n"
        f'model = timm.create_model("{source}", pretrained=True).eval()\n'
        f"features = model.forward_features(images)  # {shape}\n```"
    )


def _origin(card: Card) -> Iterator[str]:
    if card.base:
        how = f", pre-trained with {card.base.method}" if card.base.method else ""
        yield f"Fine-tuned from: {card.base.name} (digest `{card.base.digest[:12]}`){how}."
    if card.teacher:
        yield f"Teacher: {_read_at(card.teacher)} (digest `{card.teacher.digest[:12]}`)."
    if card.source:
        what = "{format}; `{file}` (sha256 `{sha256}`)".format_map(card.source)
        yield f"Imported from another project's file: {what}."
        told = [f"- {k}: {v}" for k, v in card.source.items() if k not in _OF_EVERY_SOURCE]
        yield "\n".join(told)


def _read_at(teacher: TeacherRecord) -> str:
    places = {
        "block {}": teacher.block,
        "cells of {} px": teacher.stride,
        "{} relation heads": teacher.relation_heads,
    }
    stated = [text.format(value) for text, value in places.items() if value]
    return ", ".join([teacher.name, *stated])


def _classes(layout: Mapping[str, Any]) -> str:
    """The names of the classes in the order of the logits, the first hundred."""
    names, described = layout.get("label_names") or [], layout.get("label_descriptions") or {}
    if not names:
        return ""
    # The words are somebody's folder names: they are shown as they are, whatever they hold.
    lines = [_MARKDOWN.sub(r"\\\1", _named(name, described)) for name in names[:_MOST_LISTED]]
    more = len(names) - len(lines)
    rest = f"\n\n… and {more:,} more: `label_names` in `config.json`." if more else ""
    numbered = "\n".join(f"{number}. {line}" for number, line in enumerate(lines))
    return f"## Classes\n\n{numbered}{rest}"


def _named(name: str, described: Mapping[str, str]) -> str:
    return f"{name}: {described[name]}" if described.get(name) else name


def _fresh(card: Card) -> str:
    if card.stride:
        return f"Trained up to its stage of stride {card.stride}; what follows is as it was drawn."
    names = ", ".join(f"`{name}`" for name in card.fresh_parameters)
    return (
        f"Trained up to block {card.last_trained_block}. The method does not train {names}: "
        "the last block's output projections are zero, which makes that block an exact "
        "identity, and fine-tuning should initialise these parameters anew."
    )


def _how_it_was_made(card: Card) -> str:
    facts = {
        "recipe": card.recipe.get("name"),
        "data": card.recipe.get("data.source"),
        "data fingerprint": card.data_fingerprint[:16],
        "code": card.code_version,
        "device": card.environment.get("device"),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items() if value]
    lines += [
        f"- changed at step {change.step:,}: {change.field}, {change.before!r} → {change.after!r}"
        for change in card.changes
    ]
    return "## How it was made\n\n" + "\n".join(lines) if lines else ""


def _scores(scores: list[Score]) -> str:
    if not scores:
        return "Not measured."
    rows = [
        f"| {score.protocol}{_settings(score)} "
        f"| {score.data} | {score.metric} | {score.value:.2f} ± {score.standard_error:.2f} "
        f"| {score.samples:,} |"
        for score in scores
    ]
    head = ["| protocol | data | metric | value | images |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])
