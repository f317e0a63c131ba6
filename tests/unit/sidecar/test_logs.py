"""A log line is one JSON object with the fields it was given."""

from __future__ import annotations

import json
import logging
import sys

from weir_sidecar.telemetry.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("weir", logging.INFO, __file__, 1, "engine is %s", ("up",), None)
    vars(made).update(extra)
    return made


def test_json_carries_event_level_and_fields() -> None:
    line = json.loads(JsonFormatter().format(record(request_id="r1")))
    assert (line["event"], line["level"], line["request_id"]) == ("engine is up", "info", "r1")
    assert line["time"].endswith("+00:00")


def test_json_stays_one_line_with_an_exception() -> None:
    made = record()
    try:
        raise ValueError("two\nlines")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError" in json.loads(line)["exception"]


def test_text_is_for_people() -> None:
    assert TextFormatter().format(record(running=3)).endswith("info    engine is up running=3")
