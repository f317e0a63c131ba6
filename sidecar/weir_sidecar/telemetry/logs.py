"""Logs: one JSON object a line, or readable text on a terminal.

A line carries the event, its level, and the fields given as `extra`. Prompts, answers, keys and
query strings are never among them: nothing in the sidecar passes them to a logger.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields a record was given as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """For people: time, level, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = " ".join(f"{key}={value}" for key, value in fields_of(record).items())
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Seldom:
    """Writes a warning at most once in a while, with how many were left out before it.

    Args:
        clock: Seconds that only move forward.
        period_s: Between two lines.
    """

    def __init__(self, clock: Callable[[], float], period_s: float = 10.0) -> None:
        self._clock = clock
        self._period_s = period_s
        self._next = float("-inf")
        self._left_out = 0

    def warn(self, log: logging.Logger, event: str, fields: Mapping[str, object]) -> None:
        """Write the line, or leave it out."""
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        log.warning(event, extra={**fields, "left_out": self._left_out})
        self._next, self._left_out = now + self._period_s, 0


def configure(level: str) -> None:
    """Send every log of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if sys.stderr.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The admin port's: a traceback for every malformed request, which is the sender's mistake.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
