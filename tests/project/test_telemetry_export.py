"""Exporting sends nothing either, and leaves the bundle alone: torch, diffusers and transformers are watched too."""

import os
import subprocess
import sys
from pathlib import Path

from diffusers_models import TINY_DIT, build
from tree import PYTHON_PATH
from watch import watch

EXPORT = [sys.executable, "-c", "from mmgen.export.cli import main; main()"]
TRACE = """
from pathlib import Path
from tiny_text import tiny_text_model
from mmgen.export.base.answer import answers
from mmgen.export.proof.parts import sources
from mmgen.export.tracing.trace import trace
for role, source in sources(tiny_text_model()).items():
    if role == "decode":
        trace(source, Path("decode.onnx"))
        answers(role, Path("decode.onnx"))
"""


def test_an_export_writes_the_bundle_and_calls_nobody(tmp_path: Path) -> None:
    """Of a diffusers folder, whose libraries know a hub and keep a cache."""
    named = tmp_path / "named"
    build(named / "model", TINY_DIT | {"num_layers": 1}, count=32)
    seen = watch([*EXPORT, "model", "--fp32", "--no-hoist", "-o", "out.mmgen"], tmp_path / "watched", named)
    assert (seen.written, seen.left, seen.called) == (frozenset(), frozenset(), frozenset())
    assert {path.name for path in named.iterdir()} == {"model", "out.mmgen"}


def test_a_home_that_cannot_be_written_is_not_missed(tmp_path: Path) -> None:
    """Tracing is what keeps most of its libraries' caches there."""
    environment = os.environ | {"HOME": "/dev/null/home", "PYTHONPATH": PYTHON_PATH}
    ran = subprocess.run([sys.executable, "-c", TRACE], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    assert (tmp_path / "decode.onnx").is_file()
