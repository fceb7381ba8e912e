"""mmgen against what a user would pick instead: same weights, same steps, same noise, in turns.

    python benchmarks/compare.py [--model dit-s ...] [--peer torch ...] [--prepare] [--rounds N] [--work build/compare]

Run it where mmgen is installed; it needs nothing else.  Peers get environments of their own in --work, with models of
random weights, plain ONNX exports and bundles: an hour and 25 GB once, of which --prepare makes all and stops.  Then,
for each model, every peer is a process that loads once, together up to 16 GB of memory; one request at a time goes to
each in turn, in another order every round.  Whatever is new in a request is new for all: other noise, another prompt,
class or context; mmgen is made to forget what it would keep.  Timed is one sample from its noise to uint8 pictures, or
to actions.  Loading ends when a process is ready, imports included.

Peers: diffusers, or the model's own modules, in eager torch in float32 and in bfloat16, and compiled in bfloat16; loops
by hand with numpy around plain exports in ONNX Runtime and in OpenVINO; optimum, if it knows the model; mmgen, whose
float32 is a float32 bundle and whose bfloat16 is a half-precision one.  What a peer compiles, it compiles anew, and its
first request takes it.  What each made of one noise is compared with what torch made in float32.

Results are kept in benchmarks/results/compare.json model by model, also after Ctrl-C; tables are printed and written to
compare.md beside it and, between two marks, to docs/benchmarks.md; docs/compare.svg shows the whole.

``amused`` is only compared when it is named.  To make what it needs takes 10 GB of memory and half an hour, unless
amused/diffusers, amused/fp32.mmgen and amused/fp16.mmgen are put into --work beforehand.
"""

import argparse
import json
import os
import platform
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from compare_models import MODELS, OPTIONAL, PEERS, REFERENCE, Model, Peer, peers_of, sessions
from compare_prepare import ROOT, prepare, python
from compare_report import drawing, marked, report, summary

from mmgen.runtime.backends.ort.importing import SWITCH
from mmgen.runtime.bench.machine import cores
from mmgen.runtime.bench.machine import record as machine
from mmgen.runtime.bench.usage import watched
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.storage.bundle import read_bundle

RESULTS = ROOT / "benchmarks" / "results" / "compare.json"
PAUSE = 0.05  # seconds in which the threads of one peer come to rest before another's turn
PATIENCE = 600.0  # seconds for one answer: torch.compile takes minutes
WARM_UP = 1  # rounds after the first request that aren't counted either


class Failed(Exception):
    """A peer that can't play, and why."""


class Worker:
    """A peer's process: one line of JSON in, one out."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, bufsize=1,
                start_new_session=True, env=os.environ | environment,
            )  # fmt: skip  # Ctrl-C is the parent's

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def ask(self, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a message, if any, and wait for the answer.

        Raises:
            Failed: it answers with an error, has ended, or says nothing for too long.
        """
        assert self._process.stdin and self._process.stdout
        if message is not None:
            try:
                print(json.dumps(message), file=self._process.stdin)
            except BrokenPipeError as error:
                raise Failed(f"it has ended; see {self._log.name}") from error
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise Failed(f"no answer in {PATIENCE:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"it ended with code {self._process.wait()}; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


def main() -> None:
    """Prepare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name in MODELS if name not in OPTIONAL]
    parser.add_argument("--model", action="append", choices=list(MODELS), help=f"default: {' '.join(default)}")
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="default: all")
    parser.add_argument("--rounds", type=int, help="default: by model, so that all take 20 minutes")
    parser.add_argument("--threads", type=int, default=cores() or 1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "compare")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--prepare", action="store_true", help="make what is missing, and stop")
    parser.add_argument("--report", action="store_true", help="write tables and plot of the results that are there")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # is Ctrl-C: no worker outlives its parent
    models = [MODELS[name] for name in asked.model or default]
    chosen = [PEERS[name] for name in asked.peer or PEERS]
    if not asked.report:
        work, peers = asked.work.resolve(), {m.name: [p for p in peers_of(m) if p in chosen] for m in models}
        failed = {model.name: prepare(model, peers[model.name], work) for model in models}
        if asked.prepare:
            raise SystemExit(f"not everything could be made: {failed}" if any(failed.values()) else 0)
        for model in models:
            able = [peer for peer in peers[model.name] if peer.name not in failed[model.name]]
            record = measure(model, able, asked.rounds or model.rounds, asked.threads, work)
            record["failed"] |= failed[model.name]
            keep(asked.results, model.name, record)
            if record["interrupted"]:
                break
    write(asked.results)


def measure(model: Model, peers: Sequence[Peer], rounds: int, threads: int, work: Path) -> dict[str, Any]:
    """Load all peers of a model and play with them."""
    tell(f"{model.title}: {rounds} rounds")
    record: dict[str, Any] = {
        "title": model.title, "steps": model.steps, "guidance": model.guidance, "threads": threads,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit(), "machine": machine(),
        "versions": {name: versions(python(work, name)) for name in sorted({peer.environment for peer in peers})},
    }  # fmt: skip
    scratch = work / "scratch"
    scratch.mkdir(exist_ok=True)
    quiet = {"HF_HUB_OFFLINE": "1", SWITCH: "1"}  # no peer reports to its makers
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", **quiet}

    def start(peer: Peer) -> Worker:
        script = Path(__file__).with_name("compare_worker.py")
        command = [python(work, peer.environment), script, model.name, peer.name, work / model.name, str(threads)]
        return Worker(command, scratch / f"{model.name}-{peer.name}.log", environment)

    record |= {"peers": {}, "failed": {}, "rounds": 0, "interrupted": False}
    for number, session in enumerate(sessions(model, peers)):
        if record["interrupted"]:
            break
        with tempfile.TemporaryDirectory(dir=scratch) as compiled, ExitStack() as stack:
            environment["TORCHINDUCTOR_CACHE_DIR"] = compiled  # anew: what compiling takes is in the first request
            starts = {peer.name: lambda peer=peer: start(peer) for peer in session}
            merge(record, play(starts, rounds, stack, scratch, 1 + number * rounds))
    for name, figures in record["peers"].items():
        figures["precision"] = PEERS[name].precision
    return record | {"decode_operations": decode_operations(work / model.name)}


def merge(record: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what a session found; who was in an earlier one too keeps its first figures and gets more samples."""
    for name, figures in found["peers"].items():
        known = record["peers"].setdefault(name, figures)
        if known is not figures:
            known["samples"] += figures["samples"]
    record["failed"] |= found["failed"]
    record["rounds"] = max(record["rounds"], found["rounds"])
    record["interrupted"] = found["interrupted"]


def decode_operations(folder: Path) -> int | None:
    """Floating-point operations of mmgen's decoder for one sample; None: there is no bundle."""
    for made in sorted(folder.glob("fp*.mmgen")):
        return sum((read_bundle(made, verify=False).graphs["decode"].operations or {}).values())
    return None


def play(
    peers: Mapping[str, Any], rounds: int, stack: ExitStack, scratch: Path, first: int = 1, pause: float = PAUSE
) -> dict[str, Any]:
    """Start all peers, then ask one at a time; what fails is left out from there on, Ctrl-C ends it early.

    Args:
        peers: by name, what starts a Worker.
        rounds: requests to each that are counted.
        stack: closes the workers.
        scratch: where they put what they made of the first request.
        first: number of the first round.
        pause: seconds before every request.

    Returns:
        peers: load, first, peak, agreement and samples of each.  failed: why, by name.  rounds: that were completed.
        interrupted: whether by Ctrl-C.
    """
    workers: dict[str, Worker] = {}
    found: dict[str, dict[str, Any]] = {}
    made: dict[str, Path] = {}
    failed: dict[str, str] = {}
    done, interrupted = 0, False

    @contextmanager
    def excluding(name: str) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            tell(f"  {name} failed: {error}")
            failed[name] = str(error)
            found.pop(name, None)
            if name in workers:
                workers.pop(name).close()

    try:
        for name, start in peers.items():
            with excluding(name):
                begun = time.perf_counter()
                workers[name] = start()
                stack.callback(workers[name].close)
                workers[name].ask()
                load, made[name] = time.perf_counter() - begun, scratch / f"{name}.npz"
                seconds = workers[name].ask({"request": 0, "save": str(made[name])})["seconds"]
                tell(f"  {name}: load {load:.1f} s, first request {seconds:.2f} s")
                found[name] = {"load": load, "first": seconds, "peak": 0, "samples": []}
        for number in range(first - WARM_UP, first + rounds):
            order = list(workers)
            random.Random(number).shuffle(order)
            turn: dict[str, dict[str, Any]] = {}
            for name in order:
                with excluding(name):
                    time.sleep(pause)
                    turn[name] = busy(workers[name], number)
            for name, sample in turn.items():  # a round that isn't complete isn't counted
                if name in found:
                    found[name]["peak"] = sample.pop("peak")
                    if number >= first:
                        found[name]["samples"].append({"round": number, **sample})
            done = max(number - first + 1, 0)
            tell(f"  round {done} of {rounds}")
    except KeyboardInterrupt:
        tell("  interrupted")
        interrupted = True
    reference = arrays(made.get(REFERENCE))
    for name, figures in found.items():
        figures["agreement"] = agreement(reference, arrays(made[name]))
    measured = {name: figures for name, figures in found.items() if figures["samples"]}
    return {"peers": measured, "failed": failed, "rounds": done, "interrupted": interrupted}


def busy(worker: Worker, number: int) -> dict[str, Any]:
    """A request, and how many cores other programs kept busy meanwhile."""
    with watched() as used:
        begun = time.perf_counter()
        sample = worker.ask({"request": number})
        seconds = time.perf_counter() - begun
    if used.others is not None:
        sample["others"] = max(used.others - sample["cpu"] / seconds, 0.0)
    return sample


def agreement(reference: Mapping[str, np.ndarray], made: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How near a peer came to the reference: latents' relative RMS, or share of tokens; PSNR of pictures in dB."""
    if not reference or not made:
        return {}
    found = {}
    wanted, got = (one["latents"].astype(np.float64) for one in (reference, made))
    if np.issubdtype(reference["latents"].dtype, np.integer):
        found["tokens"] = float((wanted == got).mean())
    else:
        found["latents"] = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    if reference["media"].dtype == np.uint8:
        error = np.mean((made["media"] / 255.0 - reference["media"] / 255.0) ** 2)
        found["psnr"] = float(-10 * np.log10(max(error, 1e-10)))  # equal pictures: 100 dB
    return found


def arrays(path: Path | None) -> dict[str, np.ndarray]:
    """What a peer saved, if it did."""
    if path is None or not path.exists():
        return {}
    with np.load(path) as file:
        return dict(file)


def commit() -> str:
    """Of the source that is measured; ``+`` where files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False).stdout

    changed = git("status", "--porcelain", "--", "runtime", "export", "benchmarks/*.py").strip()
    return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")


def versions(interpreter: Path) -> dict[str, str]:
    """Python's and all packages' of an environment."""
    command = [interpreter, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"python": platform.python_version(), **{package["name"]: package["version"] for package in listed}}


def keep(path: Path, name: str, record: Mapping[str, Any]) -> None:
    """Put a model's results in the place of its last ones; one that nobody finished a round of changes nothing."""
    if not record["peers"]:
        tell(f"  nothing was measured: {record['failed']}")
        return
    known = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(known | {name: record}, indent=1, default=float)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as put:
        put(re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text).encode() + b"\n")


def write(path: Path) -> None:
    """Tables and plot of all results: beside them, and in docs if they are the project's own."""
    known = json.loads(path.read_text()) if path.exists() else {}
    records = {name: known[name] for name in MODELS if name in known}
    if not records:
        raise SystemExit("there are no results")
    text = report(records)
    print(text)
    with whole_file(path.with_suffix(".md")) as put:
        put(text.encode())
    at_home = path.resolve() == RESULTS
    with whole_file(ROOT / "docs" / "compare.svg" if at_home else path.with_suffix(".svg")) as put:
        put(drawing(records))
    page = ROOT / "docs" / "benchmarks.md"
    if at_home and (new := marked(page.read_text(), summary(records, "compare.svg"))):
        with whole_file(page) as put:
            put(new.encode())


def tell(what: str) -> None:
    """Progress, on stderr."""
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
