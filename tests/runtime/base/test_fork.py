"""A process that is forked from one with a generator ends as any other, and is told that the generator isn't its own.

Each child is a fork of a program of its own, which would wait for ever where a child does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("there is no fork on this system", allow_module_level=True)

PROGRAM = """
import gc, json, multiprocessing, os, signal, subprocess, sys, threading, time, warnings
import numpy as np
from mmgen.runtime import MmgenError, load

warnings.simplefilter("ignore")  # of Python 3.12, that forking with threads is dangerous
folder, backend, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
asked = {"prompt": "red apple", "seed": 3, "steps": 4}
generator = load(folder, backend, threads=threads)
expected = generator.generate(**asked)
stream = generator.stream(**asked)
row = next(stream)
closed = load(folder, backend, threads=threads)
closed.generate(**asked)
closed.close()


def refused(why, *calls):
    for call in calls:
        try:
            call()
        except MmgenError as error:
            assert str(error).startswith(why), error
        else:
            os._exit(4)


OURS = "this generator was loaded in another process; load the bundle in the process that uses it"


def use():
    refused(OURS, lambda: generator.generate(**asked), lambda: next(stream), lambda: next(generator.stream(**asked)))
    refused(OURS, row.preview, row.latents, row.result)
    refused(OURS, lambda: generator.decode(expected.latents), lambda: generator.forget("condition"))


def end():
    sys.exit(0)


def collect():
    global generator, stream, row, closed
    del generator, stream, row, closed
    gc.collect()
    sys.exit(0)


def close():
    stream.cancel()
    stream.close()
    generator.close()
    generator.close()
    refused(OURS, lambda: generator.generate(**asked))
    sys.exit(0)


def with_blocks():
    with generator, stream:
        pass
    collect()


def load_again():
    if backend == "openvino":  # whose threads it would wait for
        why = "OpenVINO can't be used in a process that was forked from one that used it"
        refused(why, lambda: load(folder, backend))
    with load(folder, "ort-cpu", threads=threads) as own:
        assert own.generate(**asked).media.shape == expected.media.shape
        grandchild = os.fork()
        if grandchild == 0:
            refused(OURS, lambda: own.generate(**asked))
            sys.exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
    collect()


def outcome(child):
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "waits for ever"


def forked(what):
    child = os.fork()
    if child == 0:
        what()
        os._exit(0)
    return outcome(child)


def while_another_thread_generates():
    begun, ended = threading.Event(), threading.Event()

    def busy():
        while not ended.is_set():
            generator.generate(**asked)
            begun.set()

    thread = threading.Thread(target=busy)
    thread.start()
    begun.wait()
    found = [forked(what) for what in (use, close, collect)]
    ended.set()
    thread.join()
    return found


def by_multiprocessing(what):
    process = multiprocessing.get_context("fork").Process(target=what)
    process.start()
    process.join(20)
    code = "waits for ever" if process.exitcode is None else process.exitcode
    process.kill()
    return code


children = (use, end, collect, close, with_blocks, load_again)
found = {what.__name__: forked(what) for what in children}
found |= {f"{what.__name__}, multiprocessing": by_multiprocessing(what) for what in (use, end, collect, close)}
found["while another thread generates"] = while_another_thread_generates()
found["subprocess"] = subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None).returncode
np.testing.assert_array_equal([*stream][-1].result().media, expected.media)  # this process was never concerned
np.testing.assert_array_equal(generator.generate(**asked).media, expected.media)
generator.close()
print(json.dumps(found))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_ends_whatever_it_does_with_what_it_inherits(bundle_folder: Path, cpu: str, threads: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(bundle_folder), cpu, str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 12
    assert {name: outcome for name, outcome in found.items() if outcome not in (0, [0, 0, 0])} == {}
    assert ran.stderr == ""
