"""Half a minute of the campaign: wrong bundles play or are refused, and threads that never rest lose nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tree import TESTS

from mmgen.runtime import load

SECONDS = float(os.environ.get("MMGEN_TEST_SECONDS", "30"))  # `make campaign` takes as many as it is given


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forks")
def test_bundles_from_strangers_play_or_are_refused(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.mmgen"
    shutil.copytree(bundle_folder, bundle)
    load(bundle, "ort-cpu", build=True).close()  # so that there are sidecars too
    assert "right" in said("run.py", bundle, 2 * SECONDS / 3)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux")
def test_threads_that_never_rest_get_what_they_asked_for_and_memory_is_flat(bundle_folder: Path) -> None:
    assert "0 wrong" in said("soak.py", bundle_folder, SECONDS / 3)


def said(program: str, bundle: Path, seconds: float) -> str:
    command = [sys.executable, str(TESTS / "campaign" / program), str(bundle), "--seconds", str(seconds)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout
