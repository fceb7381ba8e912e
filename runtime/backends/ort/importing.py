"""ONNX Runtime, imported with its telemetry switched off."""

import os
from typing import Any

SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime without the files it would keep in the user's home and send to its makers.

    It reads the variable once, when it is imported, and otherwise writes an ID of the machine and a queue of events
    (from 1.31).  Where the program has imported it before, that has happened, and nothing is added from then on.

    Raises:
        ImportError: it isn't installed, or a library that it needs isn't.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        import onnxruntime
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
    onnxruntime.disable_telemetry_events()
    return onnxruntime
