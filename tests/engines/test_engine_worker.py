"""The compiler's process: whatever becomes of it, its parent gets an error in one line and lives on."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_compiler import REPORT, compiled, worker

from mmgen.engines.compile import Job
from mmgen.engines.worker import compile_apart
from mmgen.runtime.base.errors import MmgenError

PATIENCE = 20  # seconds


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("step", "tensorrt-rtx", ("sm86",), "step.onnx", (), (), (), str(tmp_path / "step.engine"))


def failed(job: Job, body: str) -> str:
    with pytest.raises(MmgenError) as caught:
        compiled(job, body)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_report_and_progress_come_back(job: Job) -> None:
    told: list[float] = []
    assert compiled(job, "say({'fraction': 0.25}); say({'fraction': 1.0})", told.append) == REPORT
    assert told == [0.25, 1.0]


def test_the_job_arrives_as_it_was_sent(job: Job) -> None:
    assert repr(job) in failed(job, "raise MmgenError(repr(job))")


def test_what_libraries_print_does_no_harm(job: Job) -> None:
    body = "os.system('echo {\\\"report\\\": 1}'); print('hello'); os.write(1, b'\\xff\\x00 no newline')"
    assert compiled(job, body) == REPORT


def test_what_is_printed_before_the_worker_runs_does_no_harm(job: Job) -> None:
    command = worker("pass")
    command[-1] = "print('\\xff hello', flush=True)\n" + command[-1]
    assert compile_apart(job, lambda fraction: None, expected=0, command=command) == REPORT


def test_a_crash_after_the_report_does_no_harm(job: Job) -> None:
    command = worker("import atexit; atexit.register(os.abort)")
    assert compile_apart(job, lambda fraction: None, expected=0, command=command) == REPORT


def test_its_errors_are_ours(job: Job) -> None:
    with pytest.raises(MmgenError) as caught:
        compiled(job, "raise MmgenError('target', got=86, wanted='sm86', remedy='look up')")
    assert str(caught.value) == "target, got 86, wanted sm86; look up"


def test_its_log_and_warnings_are_ours(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    body = "say({'warning': 'timing again'}); logging.getLogger('mmgen.tensorrt').warning('100 % busy')"
    with pytest.warns(UserWarning, match="^timing again$"):
        compiled(job, body)
    assert [(r.name, r.levelno, r.getMessage()) for r in caplog.records] == [
        ("mmgen.tensorrt", logging.WARNING, "100 % busy")
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGSEGV", "graph step: the compiler crashed with SIGSEGV"),
        ("SIGABRT", "graph step: the compiler crashed with SIGABRT"),
        ("SIGKILL", "graph step: the compiler was killed (SIGKILL), most likely because memory ran out"),
    ],
)
def test_a_death_is_told_with_its_signal_and_last_output(job: Job, name: str, words: str) -> None:
    body = f"""
for i in range(9): print('line', i, flush=True)
logging.getLogger('mmgen.tensorrt').error('tactic 7')
os.kill(os.getpid(), signal.{name})"""
    line = failed(job, body)
    assert line.startswith(words)
    assert "line 8" in line and "tactic 7" in line and "line 0" not in line
    if name == "SIGKILL":
        assert "GiB free at the start, wanted about 3.0 GiB; close other programs" in line
    else:
        assert line.endswith("use another version of TensorRT, or another optimization level")


def test_an_unexpected_error_is_told_with_its_last_line(job: Job) -> None:
    line = failed(job, "raise ZeroDivisionError('by zero')")
    assert line.startswith("graph step: the compiler ended with status 1; its last output: ")
    assert "ZeroDivisionError: by zero" in line


def test_a_worker_that_can_not_start_is_told(job: Job) -> None:
    with pytest.raises(MmgenError, match="the compiler ended with status 3; its last output: no such module"):
        command = [sys.executable, "-c", "import sys, os; os.close(0); print('no such module'); sys.exit(3)"]
        compile_apart(job, lambda fraction: None, expected=0, command=command)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice is Linux's")
def test_the_kernel_ends_it_first(job: Job) -> None:
    assert failed(job, "raise MmgenError(Path('/proc/self/oom_score_adj').read_text().strip())") == "1000"


def test_it_does_not_import_from_the_users_folder(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tensorrt_rtx.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path / "here")
    assert "77" not in failed(job, "__import__('tensorrt_rtx').nowhere")


def test_a_full_disk_is_told_and_leaves_nothing(job: Job, tmp_path: Path) -> None:
    body = """
import resource
from mmgen.runtime.files.atomic import whole_file
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
with whole_file(Path(job.engine)) as write: write(bytes(1000))"""
    assert "step.engine can't be written (File too large)" in failed(job, body)
    assert os.listdir(tmp_path) == []


# Its end with its parent's


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


PARENT = """
import sys
from mmgen.engines.compile import Job
from mmgen.engines.worker import compile_apart
job = Job("step", "tensorrt-rtx", ("sm86",), "step.onnx", (), (), (), sys.argv[1] + "/step.engine")
compile_apart(job, lambda fraction: None, expected=0, command=sys.argv[2:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    body = "Path('pid.new').write_text(str(os.getpid())); os.rename('pid.new', 'pid'); time.sleep(600)"
    command = [sys.executable, "-c", PARENT, str(tmp_path), *worker(body)]

    def at_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # programs started in the background ignore it

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=at_a_terminal) as parent:
        try:
            assert wait_for((tmp_path / "pid").exists)
            pid = int((tmp_path / "pid").read_text())
            assert alive(pid)
            parent.send_signal(number)
            parent.wait(PATIENCE)
        finally:
            parent.kill()
    assert wait_for(lambda: not alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_parent_that_stops_waiting_ends_it(job: Job, tmp_path: Path) -> None:
    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(job, "Path('pid').write_text(str(os.getpid())); say({'fraction': 0.5}); time.sleep(600)", stop)
    assert not alive(int((tmp_path / "pid").read_text()))
