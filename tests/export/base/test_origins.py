"""Whose code a line is."""

from pathlib import Path

import torch
from tree import ROOT

from mmgen.export.base.origins import is_users

OURS = sorted((ROOT / "export").rglob("*.py"))


def test_a_line_of_any_room_of_the_exporter_is_not_the_user_s() -> None:
    assert OURS and not [file for file in OURS if is_users(str(file))]
    assert not is_users(torch.nn.functional.__file__)


def test_a_line_of_a_model_is(tmp_path: Path) -> None:
    assert is_users(str(tmp_path / "my_model.py"))
