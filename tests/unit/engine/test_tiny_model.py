"""The generated model: the same bytes everywhere, whole or absent, and able to speak."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from weir_core.errors import InvalidSpec
from weir_engine.tiny.grammar import FOLLOWERS, WORDS, WordClass, class_of, corpus
from weir_engine.tiny.model import SIZES, files, prepare
from weir_engine.tiny.numbers import Numbers
from weir_engine.tiny.weights import tensors

DIGESTS = {
    "config.json": "dacc138e13f0e69b",
    "generation_config.json": "735d824353bd8f05",
    "model.safetensors": "d3a9981ab08f32f1",
    "tokenizer.json": "1e6c011cca6640f5",
    "tokenizer_config.json": "228dab393fe9efb0",
    "weir-tiny.json": "6a9331181958223e",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    assert prepare("", directory)
    return directory


def test_is_the_same_to_the_byte_on_every_machine(model: Path) -> None:
    """If this fails on purpose, raise `VERSION`, so that cached models are made anew."""
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(model.iterdir())
    }
    assert digests == DIGESTS


def test_a_second_start_finds_it(model: Path) -> None:
    written = (model / "model.safetensors").stat().st_mtime_ns
    assert not prepare("", model)
    assert (model / "model.safetensors").stat().st_mtime_ns == written


def test_an_older_version_is_replaced(model: Path, tmp_path: Path) -> None:
    old = tmp_path / "tiny"
    old.mkdir()
    (old / "weir-tiny.json").write_text('{"version": "0"}')
    (old / "leftover").write_text("")
    assert prepare("", old)
    assert sorted(path.name for path in old.iterdir()) == sorted(
        path.name for path in model.iterdir()
    )


def test_leaves_nothing_beside_it(model: Path) -> None:
    assert [path.name for path in model.parent.iterdir()] == ["tiny"]


def test_an_unknown_size_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="tiny://9b is not a size; there are tiny://, tiny://5m"):
        prepare("9b", tmp_path / "tiny")


@pytest.mark.parametrize(("size", "millions"), [("", 1.3), ("5m", 5.2)])
def test_sizes_are_what_they_are_called(size: str, millions: float) -> None:
    shape = SIZES[size]
    classes = [WordClass.OTHER] * shape.vocabulary
    count = sum(tensor.size for _, tensor in tensors(shape, classes))
    assert round(count / 1e6, 1) == millions


def test_every_word_of_the_grammar_is_one_token(model: Path) -> None:
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    spaced = {
        f"Ġ{word}"
        for kind, words in WORDS.items()
        for word in words.split()
        if kind is not WordClass.STOP
    }
    assert spaced <= vocabulary.keys()


@pytest.mark.parametrize(
    ("token", "want"),
    [
        (" pilot", WordClass.SUBJECT),
        ("pilot", WordClass.OTHER),
        ("lamp", WordClass.NAME),
        (" lamp", WordClass.OBJECT),
        (".", WordClass.STOP),
        ('": "', WordClass.QUOTE),
        ("2024", WordClass.NUMBER),
        ("²", WordClass.OTHER),
    ],
)
def test_tokens_have_a_place_in_the_grammar(token: str, want: WordClass) -> None:
    assert class_of(token) is want


def test_every_walk_of_the_grammar_can_go_on_and_end() -> None:
    assert set(FOLLOWERS) == set(WordClass)
    assert WordClass.END in FOLLOWERS[WordClass.STOP]


def test_the_corpus_never_changes_between_runs() -> None:
    first, second = list(corpus(20, 80)), list(corpus(20, 80))
    assert first == second


def test_numbers_are_the_published_sequence() -> None:
    """SplitMix64 from 0: the reference implementation's first outputs."""
    numbers = Numbers("any")
    numbers._state = 0
    assert [int(one) for one in numbers._next(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_both_sizes_share_a_tokenizer() -> None:
    small, large = (files(SIZES[size])["tokenizer.json"] for size in ("", "5m"))
    assert small == large
