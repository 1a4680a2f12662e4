"""How zoo serve reads the cards of models: checked before a push, harmless in a listing."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ownhub import OwnHub, additions, own_hub, use_client

VALIDATE = "/api/validate-yaml"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnHub]:
    """A server for the tests that leave it as it was."""
    folder = tmp_path_factory.mktemp("steady") / "served"
    folder.mkdir()
    with own_hub(folder) as hub:
        yield hub


CARDS = {
    "as it should be": ("license: mit\ntags: [a]", 200, ""),
    "a licence with a name": ("license: other\nlicense_name: ours", 200, ""),
    "no metadata": (None, 200, "empty or missing"),
    "no licence": ("tags: [a]", 200, "no license"),
    "not YAML": ("license: [mit", 400, "not YAML"),
    "no mapping": ("- license", 400, "not a mapping"),
    "unknown licence": ("license: my-own", 400, "license"),
    "other, and no name": ("license: other", 400, "license_name"),
    "tags of numbers": ("license: mit\ntags: [1]", 400, "tags"),
    "a bad model-index": ("license: mit\nmodel-index: [{name: a, results: 3}]", 400, "model-index"),
    "an alias": ("a: &a [x, x]\nb: [*a, *a]", 400, "aliases"),
    "not a number": ("license: mit\na: .nan", 400, ""),
    "a key that is none": ("{[1]: a}", 400, ""),
    "far down": ("a: " + "[" * 5000, 400, ""),
    "a pipeline of many": ("license: mit\npipeline_tag: [a]", 400, "pipeline_tag"),
    "a library that is none": ("license: mit\nlibrary_name: {a: b}", 400, "library_name"),
    "licences of licences": ("license: [[mit]]", 400, "license"),
    "neither yes nor no": ("license: mit\nprivate: !!bool maybe", 400, "cannot be read"),
    "no time": ("license: mit\na: !!timestamp foo", 400, "cannot be read"),
    "no digit": ('license: mit\na: !!int ""', 400, "cannot be read"),
    "no digit either": ('license: mit\na: !!float ""', 400, "cannot be read"),
    "hours without end": (f"license: mit\na: 1{':0' * 300}.0", 400, "cannot be read"),
    "half a character": ('license: mit\ntags: ["\\ud800"]', 400, ""),
}


@pytest.mark.parametrize(("card", "status", "says"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_checked(steady: OwnHub, card: str | None, status: int, says: str) -> None:
    content = "# A model\n" if card is None else f"---\n{card}\n---\n# A model\n"
    asked = {"content": content, "repoType": "model"}
    answer = steady.raw("POST", VALIDATE, json=asked)
    assert answer.status_code == status
    messages = [each["message"] for kind in answer.json().values() for each in kind]
    assert says in "\n".join(messages)
    assert bool(answer.json()["errors"]) == (status == 400)


_KEYS = ["license", "tags", "pipeline_tag", "model-index", "a"]
_TAGS = ["bool", "int", "float", "timestamp", "binary", "null", "set", "omap", "pairs", "str"]
_VALUES = st.text(alphabet="-+:[]{}'\".,_ 0179abexT~", max_size=20)


@examples(
    deadline=None,
    max_examples=40,
)
@given(
    st.text(max_size=200)
    | st.text(alphabet="-:[]{}&*!|>'\"\n ab1", max_size=60)
    | st.builds("{}: !!{} {}".format, st.sampled_from(_KEYS), st.sampled_from(_TAGS), _VALUES)
)
def test_any_card_has_an_answer(steady: OwnHub, text: str) -> None:
    content = {"content": f"---\n{text}\n---\n"}
    answer = steady.raw("POST", VALIDATE, content=json.dumps(content).encode())
    assert answer.status_code in {200, 400}


def test_a_bad_card_is_that_of_one_model_only(tmp_path: Path) -> None:
    cards = [card for card, _, _ in CARDS.values() if card]
    for number, card in enumerate(cards):
        model = tmp_path / "served" / "org" / f"model{number}"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "README.md").write_text(f"---\n{card}\n---\n")
    names = {f"org/model{number}" for number in range(len(cards))}
    with own_hub(tmp_path / "served") as hub:
        assert {model["id"] for model in hub.raw("GET", "/api/models").json()} == names
        assert hub.raw("GET", "/api/models?filter=a&pipeline_tag=b").json() == []
        for name in names:
            model = hub.raw("GET", f"/api/models/{name}").json()
            assert isinstance(model["pipeline_tag"], str | None)
            assert isinstance(model["library_name"], str | None)
            assert all(isinstance(tag, str) for tag in model["tags"])


def test_a_bad_card_stops_the_client_before_it_uploads(
    steady: OwnHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = use_client(monkeypatch, steady, tmp_path / "cache")
    files = {"README.md": b"---\nlicense: other\n---\n", "model.safetensors": b"weights"}
    with pytest.raises(ValueError, match="license_name"):
        api.create_commit("org/name", additions(files), commit_message="push")
    requests = [p for method, p in steady.requests if method == "PUT" or "preupload" in p]
    assert not requests
