"""The stand-in GPU: as strict as the real libraries where they were seen to be, stricter where they are undefined."""

import ctypes
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

from cuda.bindings import runtime as real
from standin_cuda import Cuda
from standin_device import Gpu, Status, signature
from standin_memory import Misuse

H2D, D2H = real.cudaMemcpyKind.cudaMemcpyHostToDevice, real.cudaMemcpyKind.cudaMemcpyDeviceToHost
LOCAL = real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
CALLS = sorted(name for name in vars(Cuda) if name.startswith("cuda"))


class Program:
    """A small program on the stand-in, with its statuses checked."""

    def __init__(self, gpu: Gpu | None = None) -> None:
        self.cuda = Cuda(gpu or Gpu())
        self.rt = self.cuda.module
        self.stream = int(self("cudaStreamCreateWithFlags", real.cudaStreamNonBlocking))

    def __call__(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self.rt, name)(*arguments)
        assert status == Status.cudaSuccess, (name, status)
        return values[0] if len(values) == 1 else values

    def status(self, name: str, *arguments: Any) -> Any:
        return getattr(self.rt, name)(*arguments)[0]

    def host(self, size: int = 1024) -> np.ndarray:
        """Page-locked memory as float32."""
        return floats(self("cudaMallocHost", size), size)

    def upload(self, to: int, source: np.ndarray) -> None:
        self("cudaMemcpyAsync", to, source.ctypes.data, source.nbytes, H2D, self.stream)

    def download(self, to: np.ndarray, source: int) -> None:
        self("cudaMemcpyAsync", to.ctypes.data, source, to.nbytes, D2H, self.stream)

    def wait(self) -> None:
        self("cudaStreamSynchronize", self.stream)


def floats(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.float32)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_the_parameters_and_the_results_that_the_real_one_documents(name: str) -> None:
    function = getattr(Cuda, name)
    code = function.__code__
    assert list(code.co_varnames[1 : code.co_argcount]) == list(signature(name))
    returns = re.search(r"Returns\n *-+\n(.*?)(\n *\w[\w ]*\n *--|$)", getattr(real, name).__doc__, re.S)
    assert returns
    assert len(re.findall(r"^ *(?:cudaError_t\n|\w+ : )", returns[1], re.M)) == 1 + function.outputs


def test_without_a_device_the_stand_in_answers_as_the_real_module() -> None:
    try:
        status, _ = real.cudaGetDeviceCount()
    except RuntimeError as error:
        pytest.skip(f"these bindings of CUDA raise an error of their own where there is no driver: {error}")
    if status != Status.cudaErrorInsufficientDriver:
        pytest.skip("there is a CUDA driver here; this compares machines without one")
    module = Cuda(None).module
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cudaGetDeviceCount", ()), ("cudaDriverGetVersion", ()), ("cudaMalloc", (16,)), ("cudaFree", (0,)),
        ("cudaMemGetInfo", ()), ("cudaStreamCreate", ()), ("cudaGetDeviceProperties", (0,)), ("cudaSetDevice", (0,)),
        ("cudaGetErrorName", (Status.cudaErrorNoDevice,)), ("cudaGetErrorString", (Status.cudaErrorNoDevice,)),
    ]  # fmt: skip
    for name, arguments in calls:
        assert getattr(module, name)(*arguments) == getattr(real, name)(*arguments), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.rt.cudaMalloc(), r"cudaMalloc\(size\) is called with"),
        (lambda p: p.rt.cudaMalloc(1, 2), "is called with"),
        (lambda p: p.rt.cudaMalloc(bytes=1), "is called with"),
        (lambda p: p.rt.cudaMemcpyAsync(0, 0, 0, 1, p.stream), "kind is 1, wanted a cudaMemcpyKind"),
        (lambda p: p.rt.cudaMallocAsync(8, p.stream), "the stand-in has no cudaMallocAsync"),
        (lambda p: p("cudaStreamSynchronize", 0), "default stream"),
    ],
)
def test_a_call_that_the_real_module_would_refuse_or_that_is_not_emulated_is_loud(
    program: Program, call: Callable[[Program], Any], message: str
) -> None:
    with pytest.raises(Misuse, match=message):
        call(program)
    assert program.cuda.memory.misuses, "also kept, in case the program catches it"


def test_a_name_that_the_real_module_does_not_have_is_an_attribute_error(program: Program) -> None:
    assert not hasattr(program.rt, "cudaMallok")
    assert program.rt.cudaMemcpyKind is real.cudaMemcpyKind


def test_work_runs_when_something_waits_for_it_and_not_before(program: Program) -> None:
    device, host = program("cudaMalloc", 1024), program.host()
    assert np.isnan(floats(device, 1024)).all(), "fresh memory is NaN"
    host[:] = 1
    program.upload(device, host)
    assert np.isnan(floats(device, 1024)).all()
    host[:] = 2  # too early
    program.wait()
    assert (floats(device, 1024) == 2).all(), "a staging buffer that is written too early shows"
    result = program.host()
    program.download(result, device)
    assert np.isnan(result).all(), "and so does a read without a wait"
    program.wait()
    assert (result == 2).all()


def test_pageable_memory_is_staged_on_the_way_in_and_waited_for_on_the_way_out(program: Program) -> None:
    device, array = program("cudaMalloc", 1024), np.ones(256, np.float32)
    program.upload(device, array)
    array[:] = 0
    program.download(array, device)
    assert (array == 1).all()


def test_an_event_marks_what_was_pushed_before_it(program: Program) -> None:
    device, host = program("cudaMalloc", 1024), program.host()
    first, second = program("cudaEventCreate"), program("cudaEventCreate")
    host[:] = 1
    program("cudaEventRecord", first, program.stream)
    program.upload(device, host)
    program("cudaEventRecord", second, program.stream)
    program("cudaMemsetAsync", device, 0, 1024, program.stream)
    assert program.status("cudaEventElapsedTime", first, second) == Status.cudaErrorNotReady
    program("cudaEventSynchronize", second)
    assert (floats(device, 1024) == 1).all()
    assert program("cudaEventElapsedTime", first, second) >= 0
    while program.status("cudaStreamQuery", program.stream) == Status.cudaErrorNotReady:
        pass
    assert (floats(device, 1024) == 0).all()


def test_a_stream_waits_for_another_one_s_event(program: Program) -> None:
    device, host, event = program("cudaMalloc", 1024), program.host(), program("cudaEventCreate")
    other = program("cudaStreamCreateWithFlags", real.cudaStreamNonBlocking)
    host[:] = 3
    program.upload(device, host)
    program("cudaEventRecord", event, program.stream)
    program("cudaStreamWaitEvent", other, event, 0)
    program("cudaStreamSynchronize", other)
    assert (floats(device, 1024) == 3).all()


def free_too_early(p: Program) -> None:
    device = p("cudaMalloc", 1024)
    p.upload(device, p.host())
    p("cudaFree", device)
    p.wait()


def use_after_free(p: Program) -> None:
    device = p("cudaMalloc", 1024)
    p("cudaFree", device)
    p("cudaMemsetAsync", device, 0, 4, p.stream)


def free_twice(p: Program) -> None:
    device = p("cudaMalloc", 1024)
    p("cudaFree", device)
    p("cudaFree", device)


def write_outside(p: Program) -> None:
    host = p.host()
    floats(host.ctypes.data, 2048)[300] = 0
    p("cudaFreeHost", host.ctypes.data)


def use_a_destroyed_stream(p: Program) -> None:
    p("cudaStreamDestroy", p.stream)
    p.wait()


def destroy_a_graph_in_flight(p: Program) -> None:
    device = p("cudaMalloc", 4)
    executable = captured(p, lambda: p("cudaMemsetAsync", device, 0, 4, p.stream))
    p("cudaGraphLaunch", executable, p.stream)
    p("cudaGraphExecDestroy", executable)


def captured(p: Program, enqueue: Callable[[], None]) -> Any:
    p("cudaStreamBeginCapture", p.stream, LOCAL)
    enqueue()
    graph = p("cudaStreamEndCapture", p.stream)
    executable = p("cudaGraphInstantiate", graph, 0)
    p("cudaGraphDestroy", graph)
    return executable


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (free_too_early, "copy to, as it runs: .* was freed"),
        (use_after_free, "memset: .* was freed"),
        (free_twice, "freed twice"),
        (write_outside, "wrote outside the 1024 bytes of host memory"),
        (use_a_destroyed_stream, "is no live Stream"),
        (destroy_a_graph_in_flight, "before its launch is done"),
        (lambda p: p("cudaFree", p("cudaMalloc", 64) + 8), "isn't the start of device memory"),
        (lambda p: p("cudaFreeHost", p("cudaMalloc", 64)), "isn't the start of host memory"),
        (lambda p: p("cudaMemsetAsync", p("cudaMalloc", 64), 0, 65, p.stream), "bytes 0 to 65 of an allocation of 64"),
        (lambda p: p("cudaMemsetAsync", 64, 0, 4, p.stream), "isn't memory of this device"),
        (lambda p: p.upload(p.host().ctypes.data, p.host()), "is host memory, wanted device"),
    ],
)
def test_what_a_device_would_answer_with_wrong_data_or_a_crash_is_loud(
    program: Program, broken: Callable[[Program], Any], message: str
) -> None:
    with pytest.raises(Misuse, match=message):
        broken(program)


def test_a_capture_records_and_a_launch_runs_what_was_recorded_each_time(program: Program) -> None:
    device, host = program("cudaMalloc", 1024), program.host()
    host[:] = 1
    executable = captured(program, lambda: program.upload(device, host))
    program.wait()
    assert np.isnan(floats(device, 1024)).all(), "capturing runs nothing"
    for value in (4, 5):
        host[:] = value
        program("cudaGraphLaunch", executable, program.stream)
        program.wait()
        assert (floats(device, 1024) == value).all(), "host memory is read at every replay"


@pytest.mark.parametrize(("name", "arguments"), [("cudaMalloc", (8,)), ("cudaFree", (0,)), ("cudaMallocHost", (8,))])
def test_an_unsafe_call_spoils_a_capture_of_its_thread_and_of_no_other(
    program: Program, name: str, arguments: tuple[Any, ...]
) -> None:
    program("cudaStreamBeginCapture", program.stream, LOCAL)
    statuses = []
    other = threading.Thread(target=lambda: statuses.append(program.status(name, *arguments)))
    other.start()
    other.join()
    assert statuses == [Status.cudaSuccess]
    assert program("cudaStreamIsCapturing", program.stream).name == "cudaStreamCaptureStatusActive"
    assert program.status(name, *arguments) == Status.cudaErrorStreamCaptureUnsupported
    assert program.status("cudaStreamEndCapture", program.stream) == Status.cudaErrorStreamCaptureInvalidated
    program.wait()


def test_waiting_for_a_stream_that_is_captured_spoils_the_capture(program: Program) -> None:
    program("cudaStreamBeginCapture", program.stream, LOCAL)
    assert program.status("cudaStreamSynchronize", program.stream) == Status.cudaErrorStreamCaptureUnsupported
    assert program.rt.cudaStreamEndCapture(program.stream) == (Status.cudaErrorStreamCaptureInvalidated, None)


def test_a_capture_ends_in_the_thread_in_which_it_began(program: Program) -> None:
    program("cudaStreamBeginCapture", program.stream, LOCAL)
    statuses = []
    other = threading.Thread(target=lambda: statuses.append(program.status("cudaStreamEndCapture", program.stream)))
    other.start()
    other.join()
    assert statuses == [Status.cudaErrorStreamCaptureWrongThread]


def test_a_call_can_be_made_to_fail_once(program: Program) -> None:
    program.cuda.fail("cudaMalloc", Status.cudaErrorMemoryAllocation, call=2)
    assert program.rt.cudaMalloc(8)[0] == Status.cudaSuccess
    assert program.rt.cudaMalloc(8) == (Status.cudaErrorMemoryAllocation, None)
    assert program.rt.cudaGetLastError() == (Status.cudaErrorMemoryAllocation,)
    assert program.rt.cudaGetLastError() == (Status.cudaSuccess,)
    assert program.rt.cudaMalloc(8)[0] == Status.cudaSuccess
    assert program.cuda.live() == {"Stream": 1, "device memory": 2}


def test_a_failure_of_running_work_shows_where_it_is_waited_for_and_ends_the_device(program: Program) -> None:
    device, host = program("cudaMalloc", 1024), program.host()
    program.cuda.fail_work(Status.cudaErrorIllegalAddress)
    program.upload(device, host)
    for name, argument in [("cudaStreamSynchronize", program.stream), ("cudaMalloc", 8), ("cudaFree", device)]:
        assert program.status(name, argument) == Status.cudaErrorIllegalAddress
    assert program.cuda.live() == {"Stream": 1, "host memory": 1}, "what was to be freed counts as freed"


def test_memory_is_limited_and_counted() -> None:
    program = Program(Gpu(memory=4096))
    first = program("cudaMalloc", 3000)
    assert program("cudaMemGetInfo") == [1096, 4096]
    assert program.rt.cudaMalloc(2000) == (Status.cudaErrorMemoryAllocation, None)
    program("cudaFree", first)
    program("cudaFree", 0)
    program("cudaMalloc", 4096)


def test_the_device_says_what_it_is(program: Program) -> None:
    facts = program("cudaGetDeviceProperties", 0)
    major = program("cudaDeviceGetAttribute", real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor, 0)
    assert (facts.major, facts.minor, facts.totalGlobalMem) == (major, 7, 8 << 30)
    assert facts.name.rstrip(b"\0") == b"Orin"
    assert program.status("cudaSetDevice", 1) == Status.cudaErrorInvalidDevice
