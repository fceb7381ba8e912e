"""Engines of a bundle with several outputs: each output has its own, and finds them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import done
from four_outputs import four_outputs

from mmgen.engines.cli import after_export
from mmgen.runtime.builds import engine_store
from mmgen.runtime.storage.bundle import outputs_of, read_bundle

OUTPUTS = ["picture", "caption", "sound", "motion"]


@pytest.mark.slow
def test_every_output_gets_engines_and_keeps_them(exported_once: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="compiling needs TensorRT for RTX")
    folder = shutil.copytree(exported_once(four_outputs, "fp16"), tmp_path / "four.mmgen")
    one = json.loads(done("build", str(folder), "--target", "sm86", "--want", "motion", "--json").stdout)
    assert list(one["outputs"]) == ["motion"] and not one["outputs"]["motion"]["reused"]
    record = json.loads(done("build", str(folder), "--target", "sm86", "--json").stdout)
    assert {name: made["reused"] for name, made in record["outputs"].items()} == dict.fromkeys(OUTPUTS, False) | {
        "motion": True
    }
    bundle = read_bundle(folder)
    place = engine_store.builds(bundle)[0][1].identity.place
    for output in outputs_of(bundle).values():
        found, build = engine_store.find(output, place)
        assert set(build.engines) == set(output.graphs)
        engine_store.check_engines(found, build)
    assert "removed" in done("build", str(folder), "--prune", "--json").stdout
    assert len(engine_store.builds(read_bundle(folder))) == len(OUTPUTS), "none of them is stale"
    shown = json.loads(done("inspect", str(folder), "--json").stdout)["engines"]
    assert [each["problem"] for each in shown] == [None] * len(OUTPUTS)


def test_graphs_optimised_for_this_processor_are_of_all_outputs(
    exported_once: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported_once(four_outputs, "fp16"), tmp_path / "four.mmgen")
    graphs = {graph.file for output in outputs_of(read_bundle(folder)).values() for graph in output.graphs.values()}
    said: list[tuple[str, float]] = []
    after_export(["cpu"])(folder, lambda stage, share: said.append((stage, share)))
    shares = [share for _, share in said]
    assert shares == sorted(shares) and 0 == shares[0] < 0.9 < shares[-1] <= 1, "one progress over all outputs"
    assert list(dict.fromkeys(stage.split(":")[0] for stage, _ in said)) == OUTPUTS
    record = json.loads(done("build", str(folder), "--target", "cpu", "--json").stdout)["optimised"]
    assert all(each["reused"] for each in record)
    assert len({each["folder"] for each in record}) == len(graphs)
    assert json.loads(done("build", str(folder), "--prune", "--json").stdout)["removed"] == []
    done("verify", str(folder), "--backend", "ort-cpu")
