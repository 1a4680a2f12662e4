"""The protocols of frozen features: what they pin, frozen by their digests."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks import benchmarks, newest
from eval.probe_protocols import PROBE_PROTOCOLS, TRAIN_IMAGES, batch_for, find_probe
from eval.protocols import PROTOCOLS
from eval.segmentation.protocols import SEG_PROTOCOLS
from zoo.errors import UsageError

# A protocol with other rules is another version: add it, and keep these.
DIGESTS = {
    "knn@1": "bcde4a449f46b4604ff96a41afe073666b6bfe5b6b39331a4236b6db12a9a656",
    "linear@1": "a10c3e1b5f9944890d86b8139c48e93879bf3f9b7d8be82ecc49a85d7dafce64",
    "linear-sweep@1": "c7ee172b0094a1b6f57f90e3d70614e6136f960d9a1d938cef4784a0d8f63ed2",
    "in1k-knn@1": "83af25b5961ac8dca801cfdd585b4e319c3bdc466a4f9178d89960ad5dca9a5a",
    "in1k-linear@1": "7b35736613976f1bdf62759975be31827403305a69fb5f589479fcd216554a2b",
    "in1k-linear-sweep@1": "0baff112d040191c1be8812f246a838bc9e50328afb40331574082f921218b08",
}


def test_no_protocol_has_changed() -> None:
    assert {name: rules.digest for name, rules in PROBE_PROTOCOLS.items()} == DIGESTS


@pytest.mark.parametrize("name", PROBE_PROTOCOLS)
def test_the_digest_covers_every_rule_and_not_the_words(name: str) -> None:
    rules = PROBE_PROTOCOLS[name]
    assert replace(rules, about="other words").digest == rules.digest
    fields = rules.pinned().keys() - {"kind", "train_images", "val_images", "class_order_sha256"}
    assert len(fields) > 8
    for field in fields:
        change: dict[str, Any] = {field: "other"}
        assert replace(rules, **change).digest != rules.digest


def test_tables_know_them() -> None:
    assert {*PROBE_PROTOCOLS, *PROTOCOLS, *SEG_PROTOCOLS, "diversity@1"} == set(benchmarks())
    found = newest("in1k-linear-sweep")
    assert found is not None
    assert found.digest == PROBE_PROTOCOLS["in1k-linear-sweep@1"].digest


def test_names_with_and_without_a_version() -> None:
    assert find_probe("knn") is find_probe("knn@1")
    assert find_probe("in1k-linear").id == "in1k-linear@1"
    with pytest.raises(UsageError, match="no benchmark is called 'knn@2'") as caught:
        find_probe("knn@2")
    assert "in1k-linear-sweep@1" in caught.value.fix


def test_the_batches_of_imagenet_are_those_of_the_papers() -> None:
    assert batch_for(TRAIN_IMAGES, 16_384) == 16_384
    assert batch_for(TRAIN_IMAGES, 1024) == 1024
    assert batch_for(9469, 16_384) == 128
    assert batch_for(1000, 16_384) == 32
    assert batch_for(20, 16_384) == 16


@given(images=st.integers(1, 10**8))
def test_a_batch_is_a_power_of_two_of_images_that_exist(images: int) -> None:
    batch = batch_for(images, 16_384)
    assert batch & (batch - 1) == 0
    assert 1 <= batch <= min(images, 16_384)
    assert batch <= max(32, images // 64)
