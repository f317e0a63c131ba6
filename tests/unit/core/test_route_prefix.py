"""The model of a prefix cache: equal beginnings are known, capacity holds, the engine is right."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir_core.route.prefix import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    TOKENS_PER_ENTRY,
    Chain,
    PrefixIndex,
    chunk_hashes,
    prefix_salt,
    prompt_text,
)

SALT = prefix_salt("llama")
BLOCK = 128
CHUNK_TOKENS = 512


def chain_of(*chunks: int, tail_bytes: int = 0) -> Chain:
    """Return the chain of a text of chunks that are told apart by a number."""
    text = b"".join(bytes([chunk]) * CHUNK_BYTES for chunk in chunks) + b"t" * tail_bytes
    return chunk_hashes([text], SALT)


def tokens_of(chain: Chain) -> int:
    """Return what four bytes a token make of it."""
    return max(1, chain.text_bytes // 4)


def run(index: PrefixIndex, chain: Chain, output_tokens: int = 0) -> None:
    index.insert(chain, tokens_of(chain), tokens_of(chain))
    index.insert(chain, tokens_of(chain), tokens_of(chain), output_tokens)


def cached(index: PrefixIndex, chain: Chain) -> int:
    return index.cached_tokens(chain, tokens_of(chain))


texts = st.binary(max_size=6).map(lambda seed: (seed or b"x") * (3 * CHUNK_BYTES // 4))


@given(text=texts, more=st.binary(max_size=3 * CHUNK_BYTES))
def test_the_chain_of_a_beginning_begins_the_chain(text: bytes, more: bytes) -> None:
    short, long = chunk_hashes([text], SALT), chunk_hashes([text, more], SALT)
    assert long.hashes[: len(short.hashes)] == short.hashes
    assert len(long.hashes) == len(text + more) // CHUNK_BYTES


@given(st.lists(st.binary(max_size=3 * CHUNK_BYTES), max_size=5))
def test_where_a_text_is_cut_into_pieces_does_not_matter(pieces: list[bytes]) -> None:
    cut, whole = chunk_hashes(pieces, SALT), chunk_hashes([b"".join(pieces)], SALT)
    assert (cut.hashes, cut.whole) == (whole.hashes, whole.whole)
    assert cut.text_bytes == whole.text_bytes


@given(text=texts, other=texts)
def test_equal_texts_and_only_those_have_equal_chains(text: bytes, other: bytes) -> None:
    first, second = chunk_hashes([text], SALT), chunk_hashes([other], SALT)
    assert (first.whole == second.whole) == (text == other)
    shared = min(len(text), len(other)) // CHUNK_BYTES
    equal = [text[: n * CHUNK_BYTES] == other[: n * CHUNK_BYTES] for n in range(1, shared + 1)]
    pairs = zip(first.hashes, second.hashes, strict=False)
    assert [one == two for one, two in pairs] == equal


@pytest.mark.parametrize(
    "salt",
    [
        pytest.param(prefix_salt("qwen"), id="another model"),
        pytest.param(prefix_salt("llama", adapter="sql"), id="an adapter"),
        pytest.param(prefix_salt("llama", cache_salt="sql"), id="a cache salt of the same name"),
        pytest.param(prefix_salt("lla", adapter="ma"), id="the same letters in other fields"),
    ],
)
def test_what_shares_no_cache_shares_no_hash(salt: bytes) -> None:
    text = b"hello" * CHUNK_BYTES
    one, two = chunk_hashes([text], SALT), chunk_hashes([text], salt)
    assert not set(one.hashes) & set(two.hashes)
    assert one.whole != two.whole


def test_the_same_text_has_the_same_chain_in_every_process_and_version() -> None:
    """A change of these numbers needs a new `digest.VERSION`: old and new sidecars disagree."""
    chain = chunk_hashes([b"0123456789abcdef" * 300], prefix_salt("llama", "sql", "tenant"))
    assert chain.hashes == [7089718355158132034, 17119578809197606099]
    assert chain.whole == 6878482608594880891


def test_the_work_for_a_request_is_bounded() -> None:
    limit = MAX_CHUNKS * CHUNK_BYTES
    whole, longer = chunk_hashes([b"a" * limit], SALT), chunk_hashes([b"a" * limit, b"b"], SALT)
    assert len(longer.hashes) == MAX_CHUNKS
    assert longer.hashes == whole.hashes
    assert whole.is_complete
    assert not longer.is_complete


def test_texts_that_differ_beyond_the_bound_are_not_taken_for_equal() -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    text = b"a" * MAX_CHUNKS * CHUNK_BYTES
    run(index, chunk_hashes([text, b"b" * 8192], SALT))
    other = chunk_hashes([text, b"c" * 8192], SALT)
    assert cached(index, other) == MAX_CHUNKS * CHUNK_TOKENS


MESSAGES = [
    {"role": "system", "content": "s" * 3000},
    {"role": "user", "content": 'a question with "quotes" and \\ and ] ' * 60},
    {"role": "assistant", "content": "an answer " * 200},
    {"role": "user", "content": "thanks"},
]


@pytest.mark.parametrize("separators", [None, (",", ":")], ids=["with spaces", "without spaces"])
@pytest.mark.parametrize("indent", [None, 2], ids=["on one line", "indented"])
def test_a_conversation_begins_with_what_it_was(
    separators: tuple[str, str] | None, indent: int | None
) -> None:
    def text(messages: int) -> bytes:
        value = json.dumps(MESSAGES[:messages], indent=indent, separators=separators)
        return b"".join(prompt_text([b'[{"type": "function"}]', value.encode()]))

    for messages in range(1, len(MESSAGES)):
        assert text(messages + 1).startswith(text(messages))


def test_other_tools_make_another_prompt() -> None:
    messages = json.dumps(MESSAGES).encode()
    with_tools = chunk_hashes(prompt_text([b'[{"type":"function"}]', messages]), SALT)
    without = chunk_hashes(prompt_text([messages]), SALT)
    assert with_tools.hashes[0] != without.hashes[0]


def test_a_request_without_a_prompt_has_an_empty_chain() -> None:
    index = PrefixIndex(10_000, BLOCK)
    chain = chunk_hashes(prompt_text([]), SALT)
    run(index, chain)
    index.learned(chain, 1, 0)
    assert cached(index, chain) == 0
    assert chain.tokens(0, 100) == 0


def test_a_prompt_that_ran_is_known_by_its_chunks() -> None:
    index = PrefixIndex(10_000, BLOCK)
    run(index, chain_of(1, 2, 3))
    assert cached(index, chain_of(1, 2, 4)) == 2 * CHUNK_TOKENS
    assert cached(index, chain_of(1, 2, 3, 4)) == 3 * CHUNK_TOKENS
    assert cached(index, chain_of(2, 3)) == 0


@pytest.mark.parametrize(
    ("tail_bytes", "want"),
    [
        pytest.param(0, 1024 - BLOCK, id="whole blocks: the last one is computed again"),
        pytest.param(4, 1024, id="one token more: all blocks before it"),
        pytest.param(4 * BLOCK + 4, 1024 + BLOCK, id="the end of the prompt counts as well"),
    ],
)
def test_the_same_prompt_again_hits_whole_blocks_and_never_its_last_token(
    tail_bytes: int, want: int
) -> None:
    index = PrefixIndex(10_000, BLOCK)
    chain = chain_of(1, 2, tail_bytes=tail_bytes)
    run(index, chain)
    assert cached(index, chain) == want


def test_a_prompt_that_was_left_in_its_middle_is_known_so_far() -> None:
    index = PrefixIndex(10_000, BLOCK)
    chain = chain_of(1, 2, 3, 4)
    index.insert(chain, 2048, computed_tokens=1200)
    assert cached(index, chain) == 2 * CHUNK_TOKENS


def test_what_was_not_used_for_longest_goes_first_and_beginnings_last() -> None:
    index = PrefixIndex(6 * CHUNK_TOKENS, BLOCK)
    run(index, chain_of(1, 2, 3))
    run(index, chain_of(4, 5, 6))
    run(index, chain_of(1, 7))
    assert cached(index, chain_of(4, 5, 6, 9)) == 3 * CHUNK_TOKENS
    assert cached(index, chain_of(1, 2, 3, 9)) == 2 * CHUNK_TOKENS


def test_ends_of_prompts_and_outputs_take_room() -> None:
    index = PrefixIndex(3 * CHUNK_TOKENS, BLOCK)
    run(index, chain_of(1, 2))
    run(index, chain_of(tail_bytes=400), output_tokens=CHUNK_TOKENS)
    assert cached(index, chain_of(1, 2, 3)) == CHUNK_TOKENS


def converse(index: PrefixIndex, step: int, until: int = 60_000, output: int = 100) -> list[int]:
    """Run a conversation whose answers the engine has cached; return the errors of predictions."""
    errors: list[int] = []
    hit = 0
    for size in range(step, until, step):
        chain = chunk_hashes([b"c" * size], SALT)
        errors.append(cached(index, chain) - hit)
        index.learned(chain, tokens_of(chain), hit)
        run(index, chain, output)
        hit = (tokens_of(chain) + output) // BLOCK * BLOCK
    return errors


@pytest.mark.parametrize("step", [900, 3000], ids=["messages below a chunk", "above"])
def test_a_conversation_is_not_charged_twice_for_what_was_an_end(step: int) -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    converse(index, step)
    # An end before the first chunk has no chunk that it could be counted with.
    assert index.tokens <= 60_000 // 4 + 100 + 2 * (CHUNK_TOKENS + 100)


@pytest.mark.parametrize("output", [0, 300], ids=["no output", "output"])
def test_where_conversations_go_on_their_answers_are_predicted(output: int) -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    errors = converse(index, 5000, output=output)
    assert errors[1] < 0
    assert set(errors[3:]) == {0}


def test_where_prompts_only_begin_alike_their_ends_are_not_predicted() -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    converse(index, 5000)
    for first in range(20):
        run(index, chain_of(first, tail_bytes=1500), output_tokens=300)
        index.learned(chain_of(first, 255), 2 * CHUNK_TOKENS, CHUNK_TOKENS)
    run(index, chain_of(100, tail_bytes=1500), output_tokens=300)
    assert cached(index, chain_of(100, 255)) == CHUNK_TOKENS


def test_a_conversation_is_not_charged_twice_where_the_engine_is_silent() -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    for size in range(3000, 60_000, 3000):
        run(index, chunk_hashes([b"c" * size], SALT), output_tokens=100)
    assert index.tokens <= 60_000 // 4 + 100 + CHUNK_TOKENS


def test_the_engines_word_on_an_end_outranks_the_guess_that_prompts_go_on() -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    converse(index, 5000)
    run(index, chain_of(100, tail_bytes=1500), output_tokens=300)
    assert cached(index, chain_of(100, 255, 254)) == CHUNK_TOKENS + 640
    index.learned(chain_of(100, 255, 254), 3 * CHUNK_TOKENS, CHUNK_TOKENS)
    assert cached(index, chain_of(100, 255, 254)) == CHUNK_TOKENS


def test_an_end_that_is_gone_does_not_count_as_another_prompt() -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    converse(index, 5000)
    chain = chain_of(100, tail_bytes=1500)
    for _ in range(2):
        run(index, chain, output_tokens=300)
        assert cached(index, chain_of(100, 255, 254)) == CHUNK_TOKENS + 640
        index.learned(chain, tokens_of(chain), CHUNK_TOKENS)


def test_a_restarted_engine_has_nothing_cached() -> None:
    index = PrefixIndex(10_000, BLOCK)
    run(index, chain_of(1, 2))
    index.clear()
    assert (len(index), index.tokens, cached(index, chain_of(1, 2))) == (0, 0, 0)
    assert index.advertised() == []


def test_the_engine_had_less_so_what_follows_is_forgotten() -> None:
    index = PrefixIndex(100_000, BLOCK)
    run(index, chain_of(1, 2, 3, 4))
    run(index, chain_of(1, 2, 5))
    run(index, chain_of(9))
    index.learned(chain_of(1, 2, 3, 4), 2048, 640)
    assert cached(index, chain_of(1, 2, 3, 4)) == 640
    assert cached(index, chain_of(1, 2, 5, 6)) == 640
    assert cached(index, chain_of(9, 9)) == CHUNK_TOKENS


def test_a_prompt_whose_beginning_was_forgotten_is_not_known_by_its_end() -> None:
    index = PrefixIndex(100_000, BLOCK)
    whole = chain_of(1, 2, 3, tail_bytes=40)
    run(index, whole)
    index.learned(chain_of(1, 2, 5), 3 * CHUNK_TOKENS, CHUNK_TOKENS)
    assert cached(index, whole) == CHUNK_TOKENS


def test_a_chunk_that_ends_inside_a_block_is_not_taken_for_lost() -> None:
    index = PrefixIndex(100_000, BLOCK)
    chain = chain_of(1, 2, 3, 4)
    index.insert(chain, 2000, 2000)
    index.learned(chain, 2000, 384)
    assert index.cached_tokens(chain, 2000) == 384


def test_the_engine_had_more_so_the_prediction_grows() -> None:
    index = PrefixIndex(100_000, BLOCK)
    index.learned(chain_of(1, 2, 3, 4), 2048, 1152)
    assert cached(index, chain_of(1, 2, 3, 4)) == 1152
    assert cached(index, chain_of(1, 2, 7, 8)) == 1152


def test_a_whole_prompt_that_hits_all_it_can_loses_nothing() -> None:
    index = PrefixIndex(100_000, BLOCK)
    chain = chain_of(1, 2)
    run(index, chain)
    index.learned(chain, 1024, 1024 - BLOCK)
    assert cached(index, chain_of(1, 2, 3)) == 2 * CHUNK_TOKENS


@given(
    first=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    second=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    tail_bytes=st.integers(0, CHUNK_BYTES - 1),
    prompt_tokens=st.integers(64, 6000),
    share=st.floats(0, 1),
    conversations=st.booleans(),
)
def test_a_prediction_after_the_engines_word_is_the_engines_word(
    first: list[int],
    second: list[int],
    tail_bytes: int,
    prompt_tokens: int,
    share: float,
    conversations: bool,
) -> None:
    index = PrefixIndex(1 << 20, BLOCK)
    if conversations:
        converse(index, 5000)
    run(index, chain_of(*first, tail_bytes=700), output_tokens=200)
    chain = chain_of(*second, tail_bytes=tail_bytes)
    usable = (prompt_tokens - 1) // BLOCK * BLOCK
    told = round(usable * share) // BLOCK * BLOCK
    index.learned(chain, prompt_tokens, told)
    predicted = index.cached_tokens(chain, prompt_tokens)
    # What is less than the first chunk has no place in the model.
    assert predicted in (told, 0)
    assert predicted == told or told < max(
        CHUNK_TOKENS, prompt_tokens * CHUNK_BYTES // chain.text_bytes + 1
    )


requests = st.tuples(
    st.lists(st.integers(1, 3), max_size=6),
    st.integers(0, CHUNK_BYTES - 1),
    st.integers(1, 5000),
    st.integers(0, 500),
    st.sampled_from(["insert", "part", "learned"]),
)


@settings(deadline=None)
@given(
    history=st.lists(requests, max_size=60),
    capacity=st.integers(1, 8000),
    block=st.sampled_from([16, 128]),
)
def test_no_history_brings_the_model_out_of_its_bounds(
    history: list[tuple[list[int], int, int, int, str]], capacity: int, block: int
) -> None:
    index = PrefixIndex(capacity, block)
    for chunks, tail_bytes, prompt_tokens, output_tokens, kind in history:
        chain = chain_of(*chunks, tail_bytes=tail_bytes)
        match kind:
            case "insert":
                index.insert(chain, prompt_tokens, prompt_tokens, output_tokens)
            case "part":
                index.insert(chain, prompt_tokens, prompt_tokens // 2)
            case _:
                index.learned(chain, prompt_tokens, prompt_tokens // 2 // block * block)
        assert 0 <= index.tokens <= capacity
        assert len(index) <= capacity // TOKENS_PER_ENTRY + 1
        predicted = index.cached_tokens(chain, prompt_tokens)
        assert predicted % block == 0
        assert 0 <= predicted < prompt_tokens
    index.clear()
    assert index.tokens == len(index) == 0


@given(chunks=st.integers(0, 600), size=st.integers(1, 1 << 21), tokens=st.integers(1, 500_000))
def test_tokens_of_chunks_never_exceed_the_prompt(chunks: int, size: int, tokens: int) -> None:
    chain = Chain([], 0, size)
    assert 0 <= chain.tokens(chunks, tokens) <= tokens
