"""mCE and the unnormalised error: AlexNet's own table, hand-computed cases, refusals."""

import pytest

from eval.corruptions import (
    ALEXNET_ERRORS,
    EXTRA_TYPES,
    SEVERITIES,
    TYPES,
    mce,
    normalised_errors,
    unnormalised_mean_error,
)
from zoo.errors import DataError

# AlexNet's errors by type and severity, as its authors published them (hendrycks/robustness).
ALEXNET = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
# Like ResNet-50's, relative to AlexNet's, in percent.
RELATIVE = dict(
    zip(TYPES, (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77), strict=True)
)

Table = dict[str, dict[int, float]]


def flat(by_type: dict[str, float]) -> Table:
    return {kind: dict.fromkeys(SEVERITIES, error) for kind, error in by_type.items()}


def alexnet() -> Table:
    return {
        kind: {severity: 100 * error for severity, error in enumerate(errors, 1)}
        for kind, errors in ALEXNET.items()
    }


def test_the_table_is_the_published_one() -> None:
    assert set(ALEXNET) == set(TYPES)
    for kind, errors in ALEXNET.items():
        assert ALEXNET_ERRORS[kind] == pytest.approx(100 * sum(errors) / 5, abs=1e-9)
    assert set(ALEXNET_ERRORS) == {*TYPES, *EXTRA_TYPES}
    assert (len(TYPES), len(EXTRA_TYPES)) == (15, 4)


def test_alexnet_against_itself() -> None:
    assert mce(alexnet()) == pytest.approx(100)
    assert unnormalised_mean_error(alexnet()) == pytest.approx(78.9, abs=0.05)


def test_the_two_scores_of_a_resnet50() -> None:
    errors = flat({kind: share * ALEXNET_ERRORS[kind] / 100 for kind, share in RELATIVE.items()})
    assert mce(errors) == pytest.approx(1153 / 15)
    assert mce(errors) == pytest.approx(76.7, abs=0.5)  # published
    assert unnormalised_mean_error(errors) == pytest.approx(60.957962)  # by hand
    assert unnormalised_mean_error(errors) == pytest.approx(60.8, abs=0.5)  # published
    assert normalised_errors(errors) == pytest.approx(RELATIVE)


def test_severities_are_pooled_before_the_division() -> None:
    errors = flat(dict.fromkeys(TYPES, 50.0))
    errors["snow"] = {1: 0.0, 2: 10.0, 3: 20.0, 4: 30.0, 5: 40.0}
    others = sum(50 / ALEXNET_ERRORS[kind] for kind in TYPES if kind != "snow")
    assert mce(errors) == pytest.approx(100 * (others + 20 / 86.6816) / 15)
    assert unnormalised_mean_error(errors) == pytest.approx((14 * 50 + 20) / 15)


def test_extra_types_move_neither_score() -> None:
    with_extra = {**alexnet(), **flat(dict.fromkeys(EXTRA_TYPES, 1.0))}
    assert mce(with_extra) == mce(alexnet())
    assert unnormalised_mean_error(with_extra) == unnormalised_mean_error(alexnet())
    relative = normalised_errors(with_extra)
    assert list(relative)[-4:] == list(EXTRA_TYPES)
    assert relative["spatter"] == pytest.approx(100 / 71.7512)


def missing_type(errors: Table) -> str:
    del errors["fog"]
    return "fog/1, fog/2, fog/3, fog/4, fog/5"


def missing_severity(errors: Table) -> str:
    del errors["snow"][4]
    return "snow/4"


def misspelt(errors: Table) -> str:
    errors["sno"] = errors["snow"]
    return "sno/1, sno/2, sno/3, sno/4, sno/5"


def sixth_severity(errors: Table) -> str:
    errors["snow"][6] = 50.0
    return "snow/6"


def not_a_number(errors: Table) -> str:
    errors["frost"][2] = float("nan")
    return "frost/2"


def over_100(errors: Table) -> str:
    errors["frost"][3] = 100.1
    return "frost/3"


@pytest.mark.parametrize("score", [mce, unnormalised_mean_error])
@pytest.mark.parametrize(
    "damage", [missing_type, missing_severity, misspelt, sixth_severity, not_a_number, over_100]
)
def test_anything_but_the_75_parts_is_refused(score, damage) -> None:
    errors = alexnet()
    named = damage(errors)
    with pytest.raises(DataError) as refused:
        score(errors)
    assert refused.value.where == named


def test_the_errors_of_some_types_alone() -> None:
    assert normalised_errors({"fog": alexnet()["fog"]}) == {"fog": pytest.approx(100)}
    with pytest.raises(DataError, match="1 of 5 parts"):
        normalised_errors({"fog": dict.fromkeys((1, 2, 3, 4), 50.0)})
