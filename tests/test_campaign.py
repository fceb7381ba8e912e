"""A minute of the campaign: bundles that are wrong somewhere play, or are refused in one line, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tree import TESTS

from mmgen.runtime import load

SECONDS = 45  # `make campaign` takes as many as it is given


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forks")
def test_bundles_from_strangers_play_or_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.mmgen"
    shutil.copytree(bundle_folder, bundle)
    load(bundle, "ort-cpu", build=True).close()  # so that there are sidecars too
    command = [sys.executable, str(TESTS / "campaign/run.py"), str(bundle), "--seconds", str(SECONDS), "--seed", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "right" in ran.stdout
