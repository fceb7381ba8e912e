"""OpenVINO plays what ONNX Runtime plays; bfloat16 only where it is asked for, and nothing is sent to anybody."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from manifests import edit
from tolerances import LIMITS

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.backends.openvino import backend as openvino
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.verify import EXACT_DB, psnr, relative_rms, share, verify

if not importlib.util.find_spec("openvino"):
    pytest.skip("OpenVINO is not installed", allow_module_level=True)
HAS_BF16 = "BF16" in openvino.find_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no instructions for bfloat16")
ASKED: dict[str, Any] = {"prompt": "red apple", "seed": 3}
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def generator(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "openvino", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=1) as opened:
        yield opened


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"solver": "dpmpp-sde-2m", "steps": 4},
        {"count": 3, "guidance": 1.0},
        {"guidance_interval": (0.2, 5.0), "guidance_rescale": 0.5},
        {"image": PICTURE, "strength": 0.6},
        {"image": PICTURE, "mask": np.arange(16) >= np.full((16, 1), 6)},
    ],
    ids=lambda asked: " ".join(asked) or "defaults",
)
def test_it_makes_what_onnx_runtime_makes(generator: Generator, wanted: Generator, request_: dict[str, Any]) -> None:
    got, want = (each.generate(**ASKED, **request_) for each in (generator, wanted))
    assert relative_rms(got.latents, want.latents) < LIMITS["OpenVINO, latents"]
    assert share(got.codes, want.codes) > LIMITS["OpenVINO, codes"]
    media, _ = generator.decode(want.latents)
    assert psnr(media, want.media) > LIMITS["OpenVINO, PSNR"]


def test_a_graph_is_compiled_once_for_a_size_and_the_bundle_s_own_size_when_it_is_loaded(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[dict[str, tuple[int, ...]]] = []
    compile_ = openvino.OpenVinoRunner._compile

    def watched(self: openvino.OpenVinoRunner, shapes: openvino.Shapes) -> Any:
        compiled.append(dict(shapes))
        return compile_(self, shapes)

    monkeypatch.setattr(openvino.OpenVinoRunner, "_compile", watched)
    with load(bundle_folder, "openvino", threads=1) as opened:
        assert len(compiled) == 4, "condition, timestep, step, decode"
        opened.generate(**ASKED)
        assert len(compiled) == 4
        for _ in range(2):
            opened.generate(**ASKED, guidance_interval=(0.2, 5.0))
        assert [shapes["guidance"] for shapes in compiled[4:]] == [(1,)], "evaluations outside have one branch"
        for _ in range(2):
            opened.generate(**ASKED, count=2)
            opened.decode(np.zeros((3, *opened.bundle.latent_shape), np.float32))
    sizes = [next(iter(shapes.values())) for shapes in compiled]
    assert len(sizes) == len(compiled) == 9, "of two samples condition, step and decode; of three decode"


def test_it_computes_in_float32_with_the_threads_that_are_asked_for(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compiled_by("openvino", bundle_folder, monkeypatch)
    assert [each.get_property("INFERENCE_PRECISION_HINT").to_string() for each in found] == ["f32"] * 4
    assert {each.get_property("INFERENCE_NUM_THREADS") for each in found} == {1}


@needs_bf16
def test_bfloat16_is_of_the_step_and_the_decoder_behind_its_codes(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compiled_by("openvino-bf16", bundle_folder, monkeypatch)
    hints = [each.get_property("INFERENCE_PRECISION_HINT").to_string() for each in found]
    assert hints == ["f32", "f32", "bf16", "f32", "bf16"], "condition, timestep, step; codes, and pictures of them"
    ran = [[node.rt_info["runtimePrecision"].astype(str) for node in c.get_runtime_model().get_ops()] for c in found]
    assert ["bf16" in precisions for precisions in ran] == [False, False, True, False, True]


def compiled_by(backend: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What OpenVINO made of condition, timestep, step and decode."""
    found = []
    compile_ = openvino.OpenVinoRunner._compile

    def watched(self: openvino.OpenVinoRunner, shapes: openvino.Shapes) -> Any:
        compiled = compile_(self, shapes)
        found.append(compiled)
        return compiled

    monkeypatch.setattr(openvino.OpenVinoRunner, "_compile", watched)
    load(folder, backend, threads=1).close()
    return found


@needs_bf16
def test_bfloat16_is_near_and_not_the_same(bundle_folder: Path, generator: Generator) -> None:
    want = generator.generate(**ASKED)
    with load(bundle_folder, "openvino-bf16", threads=1) as half:
        got = half.generate(**ASKED)
        media, codes = half.decode(want.latents)
    assert np.array_equal(codes, want.codes), "they are searched for in float32"
    assert LIMITS["OpenVINO bfloat16, PSNR"] < psnr(media, want.media) < EXACT_DB
    assert 1e-3 < relative_rms(got.latents, want.latents) < LIMITS["OpenVINO bfloat16, latents"]


@needs_bf16
def test_verify_says_what_bfloat16_costs(bundle_folder: Path) -> None:
    full, half = (verify(bundle_folder, name, threads=1) for name in ("openvino", "openvino-bf16"))
    assert [receipt.tensor.partition(" row")[0] for receipt in full] == [
        receipt.tensor.partition(" row")[0] for receipt in half
    ]
    assert half[0].measured > 5 * full[0].measured, "the trajectory"
    assert half[1] == full[1], "the codes"
    assert half[2].measured < full[2].measured, "pictures of the same codes, in dB"


@needs_bf16
def test_a_float32_bundle_is_not_played_in_bfloat16(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    whole = dataclasses.replace(bundle, precision=dataclasses.replace(bundle.precision, policy="fp32"))
    with pytest.raises(
        MmgenError, match=r"is float32, and bfloat16 is half precision; export it with --fp16"
    ) as caught:
        openvino.open_backend("openvino-bf16", whole, None)
    assert "\n" not in str(caught.value)


def test_a_processor_without_bfloat16_is_an_error(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SimpleNamespace(Core=lambda: SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"]))
    monkeypatch.setattr(openvino, "find_core", plain.Core)
    with pytest.raises(MmgenError, match="no instructions for bfloat16; use --backend openvino"):
        load(bundle_folder, "openvino-bf16")


def test_without_openvino_it_is_an_error_and_auto_takes_onnx_runtime(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("openvino", "openvino-bf16"):
        with pytest.raises(MmgenError, match=re.escape(f"OpenVINO is not installed; {extra('openvino')}")):
            load(bundle_folder, name)
    without_gpu(monkeypatch)
    with load(bundle_folder) as opened:
        assert opened.backend == "ort-cpu"


def test_auto_takes_it_in_float32_where_there_is_no_gpu(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)
    with load(bundle_folder) as opened:
        assert opened.backend == "openvino"


def without_gpu(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MmgenError("no GPU")

    for module in ("tensorrt.backend", "ort.cuda"):
        patch.setattr(f"mmgen.runtime.backends.{module}.open_backend", refuse)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "step.onnx: OpenVINO can't load it"), (b"no model", "step.onnx is not ONNX")]
)
def test_a_graph_that_is_none_is_one_clear_line(bundle_copy: Path, content: bytes, said: str) -> None:
    graph = bundle_copy / "graphs/step.onnx"
    graph.write_bytes(content)
    edit(bundle_copy, lambda record: record["graphs"]["step"].update(sha256=sha256(graph)))
    with pytest.raises(MmgenError, match=rf"{said} .*; export ") as caught:
        load(bundle_copy, "openvino")
    assert "\n" not in str(caught.value)


def test_generators_run_in_parallel(bundle_folder: Path, generator: Generator) -> None:
    want = [generator.generate(**ASKED | {"seed": seed}).media for seed in range(2)]
    with load(bundle_folder, "openvino", threads=1) as one, load(bundle_folder, "openvino", threads=1) as other:
        made: dict[int, list[np.ndarray]] = {0: [], 1: []}

        def play(seed: int, opened: Generator) -> None:
            made[seed] += [opened.generate(**ASKED | {"seed": seed}).media for _ in range(5)]

        threads = [threading.Thread(target=play, args=pair) for pair in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, media in made.items():
        assert len(media) == 5 and all(np.array_equal(each, want[seed]) for each in media)


def test_signals_may_come_after_generators_were_closed_in_any_order_and_thread(bundle_folder: Path) -> None:
    """In a process of its own, which a fault would end."""
    code = (
        "import gc, signal, threading; from mmgen.runtime import load\n"
        f"first, second, third = (load({str(bundle_folder)!r}, 'openvino', threads=1) for _ in range(3))\n"
        "first.close(); del first; gc.collect()\n"
        "elsewhere = threading.Thread(target=third.close)\n"
        "elsewhere.start(); elsewhere.join(); del third; gc.collect()\n"
        "second.close(); del second; gc.collect()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted'))\n"
        "signal.raise_signal(signal.SIGINT)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "interrupted\n"


def test_nothing_is_reported_to_anybody(bundle_folder: Path, tmp_path: Path) -> None:
    """Importing OpenVINO sends an event where its package for that is installed, which comes with it."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry/__init__.py").write_text("print('telemetry')\nclass Telemetry:\n  pass")
    (tmp_path / "openvino_telemetry/backend.py").write_text("backend_ga4 = None")
    code = (
        "import sys; from mmgen.runtime import load\n"
        f"load({str(bundle_folder)!r}, 'openvino', threads=1).close()\n"
        "print('loaded', 'openvino_telemetry' in sys.modules)\n"
        "import openvino_telemetry"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["loaded False", "telemetry"], "others may still import it"
