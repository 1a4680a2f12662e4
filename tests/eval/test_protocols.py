"""The protocols: what they pin, frozen by their digests."""

from dataclasses import replace

import pytest

from eval.classes import columns
from eval.corruptions import EXTRA_TYPES
from eval.layouts import expected
from eval.protocols import PROTOCOLS, find_protocol
from zoo.errors import UsageError

# A protocol with other rules is another version: add it, and keep these.
DIGESTS = {
    "in1k-finetune@1": "d15d88222be7b7d925bdadfe29d0e8747d15f84ce207e2aae99cda538100e2e4",
    "own@1": "b536802e9c8a46895437caeda68d547424023e5727d28fef3e83b859cab53b8e",
    "in1k-val@1": "cf0b87a30a244cf80729fb25df9b5d148a1ee28eef7b59a7d974d4f49ff8d503",
    "in1k-real@1": "8304bd0242fcf667ac23c7a34065560ca2e05bb899be2c34c0db7464505b2cd8",
    "in1k-v2@1": "6907b58675a9d31b71a9c34a1dcb3b7b6523ddf4f0e8cb657748da63b674e5ff",
    "in1k-a@1": "c92d1afc693469289f8e360846e049b49e9f6f8db15e35e270bd2c1a596f525b",
    "in1k-a-clean@1": "a02982e9aa291dab7db2a39f20b74ddc83b9eeb1f546d4129d6b6bb2d5975dc0",
    "in1k-r@1": "24a52fb686bbdc859ba75a06d0fd0ed81d72d880d9ca293decf6b74675146141",
    "in1k-r-clean@1": "a651a1d9aad8e7c7689492d61c774ba82a3afb79e10517811595b6743f450f21",
    "in1k-sketch@1": "5211230fa1daeed344701d4dc1b0440190dd07786d07cbd4269174e7c70f0cb5",
    "in1k-c@1": "ebea04c624d09d33631ac38fce2f77023b33eb56392e196512e72ec699b05cbf",
}


def test_no_protocol_has_changed() -> None:
    assert {name: protocol.digest for name, protocol in PROTOCOLS.items()} == DIGESTS


@pytest.mark.parametrize(
    "change",
    [
        {"subset": "a"},
        {"labels": "sets"},
        {"images": (49_999,)},
        {"classes": 999},
        {"metrics": ("top-1",)},
        {"transform": "whole"},
        {"calibration_bin": 50},
        {"version": 2},
    ],
    ids=str,
)
def test_every_rule_moves_the_digest(change: dict) -> None:
    protocol = PROTOCOLS["in1k-val@1"]
    assert replace(protocol, **change).digest != protocol.digest


def test_words_do_not_move_the_digest() -> None:
    protocol = PROTOCOLS["in1k-val@1"]
    assert replace(protocol, about="other words").digest == protocol.digest


def test_what_a_digest_covers() -> None:
    masked, real = PROTOCOLS["in1k-r@1"].pinned(), PROTOCOLS["in1k-real@1"].pinned()
    assert masked["columns"] == columns("r").tolist()
    assert masked["labels_sha256"] is None
    assert real["labels_sha256"].startswith("d83e9bff")
    assert real["columns"] == list(range(1000))
    assert masked["class_order_sha256"] == real["class_order_sha256"]


@pytest.mark.parametrize("name", ["in1k-a", "in1k-r"])
def test_the_clean_figure_is_of_the_same_classes(name: str) -> None:
    protocol = find_protocol(name)
    clean = PROTOCOLS[protocol.companion]
    assert clean.subset == protocol.subset
    assert clean.classes == protocol.classes == 200
    assert clean.images == (200 * 50,)
    assert clean.metrics == protocol.metrics


def test_imagenet_c_has_75_parts_and_no_extra_one() -> None:
    protocol = find_protocol("in1k-c")
    assert len(set(protocol.parts)) == 75
    assert not [part for part in protocol.parts if part.startswith(EXTRA_TYPES)]
    assert protocol.metrics == ("mce-alexnet-normalised", "mean-error-unnormalised")
    assert protocol.transform == "whole"


@pytest.mark.parametrize("name", expected())
def test_what_a_protocol_asks_for_is_what_its_set_must_hold(name: str) -> None:
    protocol, due = find_protocol(name), expected()[name]
    assert set(protocol.images) == {due.images, due.or_images or due.images}
    assert protocol.classes == len(due.synsets)
    assert list(protocol.parts) == [f"{k}/{s}" for k, s in due.groups if s]


def test_a_protocol_is_found_by_its_name() -> None:
    assert find_protocol("in1k-a") is find_protocol("in1k-a@1") is PROTOCOLS["in1k-a@1"]
    with pytest.raises(UsageError, match="in1k-x") as unknown:
        find_protocol("in1k-x")
    assert "in1k-val@1" in unknown.value.fix
    with pytest.raises(UsageError) as later:
        find_protocol("in1k-a@7")
    assert later.value.fix == "choose one of: in1k-a@1"
