"""A bundle to build engines into."""

import shutil
from pathlib import Path

import pytest

from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    return read_bundle(shutil.copytree(bundle_folder, tmp_path / "b.mmgen"))
