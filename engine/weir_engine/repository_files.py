"""Which files of a model's repository vLLM reads: pure.

Everything is fetched but what no reader of vLLM opens: other frameworks' formats, pictures, the
state of a training run, and second copies of the weights. `tests/unit/engine/test_vllm_readers.py`
holds the choice to those readers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from posixpath import basename, dirname
from typing import Final

CHOICE: Final = 1
"""Raise when `wanted` chooses more files than before, so that kept directories are completed."""

NO_WEIGHTS: Final = "none"
"""Instead of a load format: a tokenizer or a configuration is wanted, and no weights."""

INDEX: Final = "model.safetensors.index.json"
"""Names the files that hold the weights; vLLM loads no others of their format."""

UNREAD: Final = (
    *("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.onnx_data", "*.tflite", "*.mlmodel", "*.llamafile"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.pdf", "*.md", ".git*"),
    *("*.mp3", "*.mp4", "*.wav", "*.flac", "*.parquet", "*.arrow", "*.ipynb", "*.zip", "*.tar*"),
)
"""Other frameworks' weights, and what describes a model to people."""

UNREAD_FOLDERS: Final = ("original", "onnx", "openvino", "coreml", "checkpoint-*", ".*")
"""Copies of the weights with a configuration of their own, which vLLM does not look for."""

TRAINING: Final = ("training_args*", "optimizer*", "scheduler.*", "scaler.*", "rng_state*")
"""Files in a format of weights that hold the state of a training run."""

WEIGHTS: Final = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")

ADDED: Final = ("*.safetensors", "*.pt")
"""Formats of files that add to a model's weights, such as `colbert_linear.pt`; their names are
none of `WHOLE`."""

WHOLE: Final = ("*model.*", "*model-*", "*model_*", "consolidated*")
"""Names of a whole model's weights, of which one format is enough."""

CONSOLIDATED: Final = "consolidated*.safetensors"
"""Weights in Mistral's own format. vLLM prefers them to others of the same repository."""

FORMATS: Final = {
    "hf": ("*.safetensors", "*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "instanttensor": ("*.safetensors",),
    "runai_streamer": ("*.safetensors",),
    "mistral": (CONSOLIDATED,),
    "pt": ("*.pt",),
    "npcache": ("*.bin",),
    "dummy": (),
}
"""vLLM's load formats and the files they read, the first that a repository has. A format that is
not here, such as a plugin's, may read any file."""


def wanted(
    names: Iterable[str], load_format: str = "auto", indexed: Collection[str] | None = None
) -> list[str]:
    """Return the files of a repository that vLLM reads, or none where the weights are missing.

    Args:
        names: All files of the repository, with `/` between folders.
        load_format: vLLM's `--load-format`, or `NO_WEIGHTS`.
        indexed: The files that the repository's `INDEX` names, where it has one.
    """
    read = [name for name in names if not _unread(name)]
    weights = {name for name in read if _matches(name, WEIGHTS)}
    rest = [name for name in read if name not in weights]
    if load_format == NO_WEIGHTS:
        return rest
    if "adapter_config.json" in rest:
        # An adapter's weights do not come in the format of the model's.
        load_format = "hf"
    root = [name for name in read if name in weights and "/" not in name]
    chosen = _chosen(root, load_format, indexed)
    folders = {dirname(name) for name in weights} - {""}
    for folder in folders:
        if {f"{folder}/config.json", f"{folder}/adapter_config.json"} & set(rest):
            inside = [name for name in weights if dirname(name) == folder]
            chosen |= _chosen(inside, "hf", None)
    if not chosen and load_format != "dummy":
        return []
    return [name for name in read if name not in weights or name in chosen]


def _chosen(weights: list[str], load_format: str, indexed: Collection[str] | None) -> set[str]:
    """Return those of one folder's weights that are loaded."""
    if load_format == "auto":
        mistral = any(_matches(name, (CONSOLIDATED,)) for name in weights)
        load_format = "mistral" if mistral else "hf"
    if load_format not in FORMATS:
        return set(weights)
    whole = [name for name in weights if _matches(name, WHOLE)]
    added = {name for name in weights if name not in whole and _matches(name, ADDED)}
    if load_format != "mistral":
        # Weights in Mistral's format are a copy of the others, or the only ones.
        whole = [name for name in whole if not _matches(name, ("consolidated*",))] or whole
    others = [name for name in weights if name not in whole and not _matches(name, WHOLE)]
    for pattern in FORMATS[load_format]:
        loaded = {name for name in (*whole, *others) if _matches(name, (pattern,))}
        if loaded:
            return added | (loaded & set(indexed or loaded) or loaded)
    return set()


def _unread(name: str) -> bool:
    folders = dirname(name).split("/") if "/" in name else []
    return (
        _matches(name, UNREAD)
        or (_matches(name, WEIGHTS) and _matches(name, TRAINING))
        or any(fnmatchcase(folder, one) for folder in folders for one in UNREAD_FOLDERS)
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(basename(name), pattern) for pattern in patterns)
