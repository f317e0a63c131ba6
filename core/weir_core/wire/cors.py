"""Which web pages may call the API: vLLM's own flags, told to what answers before vLLM.

The engine adds CORS headers to its answers by `--allowed-origins` and its kin in
`spec.engine.args`. A sidecar answers preflights and refuses requests itself, and has to say the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from weir_core.errors import InvalidSpec

_LISTS: Final = {
    "--allowed-origins": "origins",
    "--allowed-methods": "methods",
    "--allowed-headers": "headers",
}
_SWITCHES: Final = {"--allow-credentials": True, "--no-allow-credentials": False}


class Cors(msgspec.Struct, frozen=True):
    """What a browser is told; the defaults are vLLM's, which let no other origin in.

    Attributes:
        origins: Origins whose pages may call; `*` is any.
        methods: Methods they may use; `*` is any.
        headers: Headers they may send; `*` is any.
        credentials: Whether they may send cookies.
    """

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False

    def encode(self) -> str:
        """Return the value of the sidecar's variable."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Cors:
        """Read the variable.

        Raises:
            ValueError: It does not hold this.
        """
        return msgspec.json.decode(text, type=cls)


def cors_of(
    args: Sequence[str], field_of: Callable[[int], str] = "spec.engine.args[{}]".format
) -> Cors:
    """Return what vLLM makes of its arguments.

    Args:
        args: The arguments.
        field_of: Where the user wrote the one with this index.

    Raises:
        InvalidSpec: A list is not one in JSON, which vLLM refuses, too.
    """
    said: dict[str, object] = {}
    for index, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        flag = name.replace("_", "-")
        if flag in _SWITCHES:
            said["credentials"] = _SWITCHES[flag]
        elif flag in _LISTS:
            written = value if equals else "".join(args[index + 1 : index + 2])
            said[_LISTS[flag]] = _names(written, field_of(index), flag)
    return msgspec.convert(said, Cors)


def _names(written: str, field: str, flag: str) -> tuple[str, ...]:
    try:
        return msgspec.json.decode(written, type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise InvalidSpec(
            field, f"{flag} takes a list of strings in JSON, such as '[\"*\"]': {error}"
        ) from error
