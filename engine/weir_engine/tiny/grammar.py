"""The toy language the tiny model speaks, and the text its tokenizer is trained on.

A sentence is a walk over word classes: "The old pilot mends the broken radio." The last token's
class alone decides which class may follow, which is as much as an embedding and an output layer
can hold without training. Subjects and objects use different words, so that the walk always
knows where in the sentence it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, auto
from typing import Final

from weir_engine.tiny.numbers import Numbers


class WordClass(IntEnum):
    """What a token is to the grammar; the value is its dimension in the embedding."""

    OTHER = auto()
    LINE = auto()
    FIRST = auto()
    OPENING = auto()
    SUBJECT_ADJECTIVE = auto()
    SUBJECT = auto()
    VERB = auto()
    ARTICLE = auto()
    OBJECT_ADJECTIVE = auto()
    OBJECT = auto()
    LINK = auto()
    STOP = auto()
    END = auto()
    NAME = auto()
    QUOTE = auto()
    NUMBER = auto()
    CLOSE = auto()


WORDS: Final[dict[WordClass, str]] = {
    WordClass.OPENING: "The A One Every This That Each Another",
    WordClass.SUBJECT_ADJECTIVE: "quiet grey young careful small tired brave clever gentle loyal "
    "patient proud silent swift curious cheerful stubborn humble kind wise",
    WordClass.SUBJECT: "pilot baker river child doctor driver sailor teacher farmer writer "
    "robot gardener dog cat fox bird horse painter singer traveller neighbour student clerk "
    "miller captain shepherd hunter tailor builder poet",
    WordClass.VERB: "mends carries watches finds opens draws follows keeps remembers builds "
    "paints reads washes measures counts moves lifts visits crosses guards sells buys sees likes "
    "loves borrows hides lights names turns",
    WordClass.ARTICLE: "the a his her one every their some that this",
    WordClass.OBJECT_ADJECTIVE: "broken red long narrow heavy bright green wooden hidden full "
    "golden round frozen distant famous simple warm cold deep plain",
    WordClass.OBJECT: "radio bridge letter boat garden window lamp road clock table map book "
    "house mountain door basket wagon candle key song picture harbour field tower station tree "
    "ladder kettle blanket mirror",
    WordClass.LINK: "and with near behind under beside above between",
    WordClass.STOP: ".",
}
"""The vocabulary by class; within a sentence each word follows a space."""

_SELDOM: Final = 1e-4
"""Share of what a chat should not show, and a JSON schema should find before anything worse."""

FOLLOWERS: Final[dict[WordClass, dict[WordClass, float]]] = {
    WordClass.OTHER: {WordClass.OPENING: 1.0, WordClass.QUOTE: _SELDOM},
    WordClass.LINE: {WordClass.FIRST: 1.0, WordClass.QUOTE: _SELDOM},
    WordClass.FIRST: {WordClass.SUBJECT_ADJECTIVE: 0.5, WordClass.SUBJECT: 0.5},
    WordClass.OPENING: {WordClass.SUBJECT_ADJECTIVE: 0.5, WordClass.SUBJECT: 0.5},
    WordClass.SUBJECT_ADJECTIVE: {WordClass.SUBJECT: 1.0},
    WordClass.SUBJECT: {WordClass.VERB: 1.0},
    WordClass.VERB: {WordClass.ARTICLE: 1.0},
    WordClass.ARTICLE: {WordClass.OBJECT_ADJECTIVE: 0.5, WordClass.OBJECT: 0.5},
    WordClass.OBJECT_ADJECTIVE: {WordClass.OBJECT: 1.0},
    WordClass.OBJECT: {WordClass.STOP: 0.8, WordClass.LINK: 0.2},
    WordClass.LINK: {WordClass.ARTICLE: 1.0},
    WordClass.STOP: {WordClass.OPENING: 0.7, WordClass.END: 0.3},
    WordClass.END: {WordClass.OPENING: 1.0},
    # Structured output: a string is one word, a number one token, and then something closes.
    WordClass.QUOTE: {WordClass.NAME: 1.0, WordClass.CLOSE: _SELDOM},
    WordClass.NAME: {WordClass.QUOTE: 1.0},
    WordClass.NUMBER: {WordClass.OPENING: 1.0, WordClass.CLOSE: _SELDOM},
    WordClass.CLOSE: {WordClass.OPENING: 1.0, WordClass.QUOTE: _SELDOM, WordClass.CLOSE: _SELDOM},
}
"""Class of the last token to the share of each class that may come next."""

PROSE: Final = """\
What is the capital of France? Hello! How are you today? Please write a short story about a dog.
Can you explain how this works, step by step, and give me an example? Thank you very much.
The quick brown fox jumps over the lazy dog. Once upon a time there was a little house by the sea.
You are a helpful assistant. Answer the question as well as you can, in one or two sentences.
Tell me more about the weather in the north, the price of bread, and the number of people who live
there. I would like to know what you think. It is not the first time that we have been asked.
A server keeps a queue of requests. When the queue is full, it should say so at once, and say when
to come back. Each request has a class, a tenant and a deadline; those that can still be on time go
first. Tokens are streamed back as they are made, one after another, until the answer is complete.
There are many ways to do this, but only some of them are good. We will look at three of them here.
def main(): return {"name": "value", "list": [1, 2, 3], "true": True, "none": None}
for i in range(10): print(i, i * i)  # the first ten squares
SELECT name, count(*) FROM items WHERE price > 10.50 GROUP BY name ORDER BY 2 DESC;
In 2024, 1,234 people from 56 countries came together; 78% of them would come again.
"""
"""What people type into a chat, so that everyday prompts cost few tokens."""

ONSETS: Final = "b c d f g h k l m n p r s t v w br ch cl cr dr fl gr pl pr sh sl sp st th tr"
RHYMES: Final = "a e i o u an ar at ea ed en er es in ing ion is it on or ou ow us ly al am"
"""What syllables are made of."""

_CLASS_OF_TOKEN: Final[dict[str, WordClass]] = {
    **{f" {word}": one for one, words in WORDS.items() for word in words.split()},
    **dict.fromkeys(WORDS[WordClass.OBJECT].split(), WordClass.NAME),
    **dict.fromkeys(WORDS[WordClass.OPENING].split(), WordClass.FIRST),
    **dict.fromkeys("}],", WordClass.CLOSE),
    ".": WordClass.STOP,
    "\n": WordClass.LINE,
}


def corpus(sentences: int = 4000, made_up_words: int = 12000) -> Iterator[str]:
    """Yield the tokenizer's training text: the same lines on every machine.

    Made-up words fill the vocabulary with syllables, which is what unknown words fall apart into.
    """
    numbers = Numbers("corpus")
    yield from PROSE.splitlines() * 20
    yield from (WORDS[WordClass.OBJECT] + " " + WORDS[WordClass.OPENING]).split() * 20
    for _ in range(sentences):
        yield _sentence(numbers)
    for _ in range(made_up_words // 8):
        yield " ".join(_made_up_word(numbers) for _ in range(8))


def class_of(token: str) -> WordClass:
    """Return what `token`, as it appears in text, is to the grammar."""
    if token.endswith('"'):
        return WordClass.QUOTE
    if token.isascii() and token.isdigit():
        return WordClass.NUMBER
    return _CLASS_OF_TOKEN.get(token, WordClass.OTHER)


def _sentence(numbers: Numbers) -> str:
    """Return one walk of the grammar."""
    words: list[str] = []
    state = WordClass.OTHER
    while state is not WordClass.STOP:
        state = numbers.pick([one for one, share in FOLLOWERS[state].items() if share > _SELDOM])
        words.append(numbers.pick(WORDS[state].split()))
    return " " + " ".join(words[:-1]) + words[-1]


def _made_up_word(numbers: Numbers) -> str:
    return "".join(
        numbers.pick(ONSETS.split()) + numbers.pick(RHYMES.split())
        for _ in range(1 + numbers.below(3))
    )
