"""Writes a tiny model into a directory, once: whole or not at all.

A second start finds it by its version key and returns at once; two processes that make it at the
same time do not disturb each other, and either's result is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weir_core.errors import InvalidSpec
from weir_engine.tiny.grammar import WordClass, class_of, corpus
from weir_engine.tiny.weights import Shape, safetensors, tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION: Final = "1"
"""Raise when any byte of the files changes, so that cached copies are made anew."""

SIZES: Final = {
    "": Shape(hidden=128, layers=2, heads=4, kv_heads=2, feed_forward=256),
    "5m": Shape(hidden=256, layers=4, heads=8, kv_heads=4, feed_forward=768),
}
"""Name after `tiny://` to sizes: 1.3 and 5.3 million parameters."""

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_KEY_FILE: Final = "weir-tiny.json"


def prepare(size: str, directory: Path) -> bool:
    """Make sure that `directory` holds the tiny model of `size`.

    Returns:
        Whether it had to be made.

    Raises:
        InvalidSpec: There is no such size.
    """
    if size not in SIZES:
        known = ", ".join(f"tiny://{name}" for name in SIZES)
        raise InvalidSpec("source.uri", f"tiny://{size} is not a size; there are {known}")
    key = json.dumps({"version": VERSION, "size": size})
    if _read(directory / _KEY_FILE) == key:
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-", dir=directory.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        for name, content in files(SIZES[size]).items():
            (made / name).write_bytes(content)
        (made / _KEY_FILE).write_text(key)
        _put(made, directory, key)
    return True


def files(shape: Shape) -> dict[str, bytes]:
    """Return every file of a model of `shape`, by name."""
    tokenizer = _trained_tokenizer(shape.vocabulary)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    classes = [class_of(tokenizer.decode([number])) for number in range(shape.vocabulary)]
    classes[ids[END]] = WordClass.END
    end, pad = ids[END], ids[PAD]
    documents = {
        "config.json": _config(shape, end, pad),
        "generation_config.json": {"do_sample": True, "eos_token_id": end, "pad_token_id": pad},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": shape.max_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    texts = {name: json.dumps(one, indent=2) + "\n" for name, one in documents.items()}
    texts["tokenizer.json"] = tokenizer.to_str()
    encoded = {name: text.encode() for name, text in texts.items()}
    return encoded | {"model.safetensors": safetensors(dict(tensors(shape, classes)))}


def _trained_tokenizer(vocabulary: int) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _config(shape: Shape, end: int, pad: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.max_length,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
    }


def _put(made: Path, directory: Path, key: str) -> None:
    """Move `made` to `directory`, over an older version; a process that was faster has won."""
    try:
        os.rename(made, directory)
    except OSError:
        if _read(directory / _KEY_FILE) == key:
            return
        shutil.rmtree(directory)
        os.rename(made, directory)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
