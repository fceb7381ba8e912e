"""Outputs exported at once, in processes: the same bundle, errors as they are, and nothing left of what failed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from four_outputs import four_outputs
from no_models import ended, refused

from mmgen.export import export
from mmgen.export.processes import Jobs
from mmgen.runtime.base.errors import MmgenError


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_the_bundle_is_the_same(exported_once: Callable[..., Path], tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    out = tmp_path / "four.mmgen"
    export(
        four_outputs(), out, policy="fp16", jobs=Jobs(2, four_outputs), progress=lambda *each: said.append(each)
    )
    assert files(out) == files(exported_once(four_outputs, "fp16"))
    shares = [share for _, share in said]
    assert shares == sorted(shares) and shares[-1] == 1
    assert {stage.partition(":")[0] for stage, _ in said} >= set(four_outputs().outputs)


def test_an_output_that_fails_ends_the_others_with_its_error(tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match="is not a function of mine") as failed:
        export(four_outputs(), tmp_path / "four.mmgen", policy="fp32", jobs=Jobs(2, refused))
    assert failed.value.remedy == "name another"
    assert not any(tmp_path.iterdir())


def test_a_process_that_is_ended_is_named(tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=r"output (picture|caption): the process that exports it was ended.*--jobs 1"):
        export(four_outputs(), tmp_path / "four.mmgen", policy="fp32", jobs=Jobs(2, ended))
    assert not any(tmp_path.iterdir())
