"""What an InferenceService may be called: it gives its name to a Service, a DNS-1035 label."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from weir_core.api.base import Rule, quoted

MAX_LENGTH: Final = 45
"""SERVICE-POOL names Deployments, whose pods' names and labels are bounded in turn."""
PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
SAYS: Final = "cannot name a Service in Kubernetes; write "
WHY: Final = " (small letters, digits and dashes, a letter first)"


def wrong(name: str) -> Iterator[str]:
    """Yield what is wrong with a name."""
    if not re.search(PATTERN, name):
        yield f"{name!r} {SAYS}{_instead(name)}{WHY}"
    if len(name) > MAX_LENGTH:
        yield f"{name!r} has {len(name)} characters; write at most {MAX_LENGTH}"


def rules() -> tuple[Rule, ...]:
    """Return what the API server checks, of the object as a whole."""
    name = "self.metadata.name"
    plain = f"{name}.lowerAscii().replace('.', '-').replace('_', '-')"
    instead = f"({name}.matches('^[A-Za-z]') ? '' : 'm-') + {plain}"
    return (
        Rule(
            f"{name}.matches({quoted(PATTERN)})",
            f"metadata.name {SAYS}another{WHY}",
            f"'metadata.name: ' + {name} + {quoted(' ' + SAYS)} + {instead} + {quoted(WHY)}",
        ),
        Rule(
            f"{name}.size() <= {MAX_LENGTH}",
            f"metadata.name has too many characters; write at most {MAX_LENGTH}",
        ),
    )


def _instead(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if re.match("[a-z]", plain) else f"m-{plain}".rstrip("-")
