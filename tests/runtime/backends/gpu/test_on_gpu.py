"""What the tests on a GPU are made of, tested where there is none."""

import json
from pathlib import Path

import numpy as np
import pytest
from inspector import precisions
from on_gpu import BACKENDS, NO_GPU, RUNS, asked, built, detailed, require_parity, rss, seconds, streamed

from mmgen.engines.targets import parse
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.generator import Generator
from mmgen.runtime.storage.bundle import read_bundle


def test_an_inspector_s_words_are_counted() -> None:
    layer = '{"Name": "a", "LayerType": "kgen", "Inputs": [], "Outputs": [{"Name": "x", "Dimensions": [1, 3], %s}]}'
    texts = ("Half", "Row major linear FP16 format", "Row major linear FP32", "Float", "Int64", "Row major linear BOOL")
    layers = ", ".join(layer % f'"Format/Datatype": {json.dumps(text)}' for text in texts)
    assert precisions(f'{{"Layers": [{layers}], "Bindings": ["x"]}}') == (2, 4)
    with pytest.raises(ValueError, match="detailed"):
        precisions('{"Layers": ["/a/MatMul + /b/Add"]}')


def test_an_engine_with_details_is_built(bundle_folder: Path) -> None:
    try:
        place = parse(["sm86"]).place
    except MmgenError as error:
        pytest.skip(str(error))
    assert detailed(read_bundle(bundle_folder), "step", place).nbytes > 1 << 10


def test_requests_and_figures_hold_on_the_cpu(cpu: Generator) -> None:
    """The tests above without their GPU: the CPU against itself."""
    request = asked(cpu.bundle, count=2)
    result, other = cpu.generate(**request), cpu.generate(**{**request, "seed": 4})
    require_parity(result, result, other, cpu.bundle.precision.policy)
    with pytest.raises(AssertionError):
        require_parity(other, result, other, cpu.bundle.precision.policy)
    rows, streamed_result = streamed(cpu, **request)
    assert len(rows) == 4 and np.array_equal(rows[-1], streamed_result.latents)
    assert len(seconds({"ort-cpu": cpu}, **request)["ort-cpu"]) == RUNS
    assert rss() > 1 << 20
    assert cpu.bundle.axes["B"].max >= 4, "the largest batch that is asked for"


@pytest.mark.skipif(NO_GPU is None, reason="there is a CUDA device here")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_can_not_be_had_says_why(backend: str, bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MmgenError) as refused:
        built(backend, bundle_folder, tmp_path / backend)
    assert str(refused.value) == NO_GPU
