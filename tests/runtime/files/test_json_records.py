"""What is told as JSON, of what JSON doesn't have."""

import json
import math
from pathlib import Path

import numpy as np

from mmgen.runtime.files.json_records import plain


def test_arrays_and_tuples_become_lists_and_what_is_no_number_in_json_text() -> None:
    told = {"interval": (0.5, math.inf), "labels": np.array([[1, 2]]), "deep": [{"x": math.nan, "y": Path("a/b")}]}
    made = plain(told)
    assert made == {"interval": [0.5, "inf"], "labels": [[1, 2]], "deep": [{"x": "nan", "y": "a/b"}]}
    json.dumps(made, allow_nan=False)
