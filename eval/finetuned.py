"""What a fine-tuned model's card tells an evaluation: of which model, how, and when it ended.

``in1k-finetune`` scores the recipe as much as the weights, so the card must say that there was one.
"""

from typing import Any

from zoo.card import Card
from zoo.errors import DataError
from zoo.folder import Classifier

FINETUNED = "in1k-finetune"


def require_finetuned(model: Classifier) -> None:
    """Raise DataError unless the card says: a pre-trained model, fine-tuned to the last epoch."""
    card = model.card
    if card is None or card.method != "finetune" or card.base is None:
        what = "the card does not say that a pre-trained model was fine-tuned"
    elif not _is_last(card):
        what = "these are the weights of the best epoch, chosen on the images that it is scored by"
    else:
        return
    raise DataError(
        what,
        where=f"{model.name}: {model.folder}",
        fix="give the export/ of a finetune-in1k-… run; in1k-val scores any classifier",
    )


def recipe_of(model: Classifier) -> dict[str, Any]:
    """What the score is of, beside the weights: the base, its images, and for how long."""
    assert model.card is not None, "require_finetuned comes first"
    assert model.card.base is not None
    return {
        "base": model.card.base.name,
        "base_digest": model.card.base.digest,
        "steps": model.card.steps,
        "training_images": model.card.data_fingerprint,
        "recipe": model.card.name,
    }


def published_as(model: Classifier) -> dict[str, str]:
    """Under which name papers have figures of a fine-tuned model: its base's."""
    base = model.card.base if model.card else None
    return {"published_as": base.name.rpartition("/")[2]} if base else {}


def _is_last(card: Card) -> bool:
    return all(score.settings.get("chosen", "last") == "last" for score in card.scores)
