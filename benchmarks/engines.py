"""Models of published sizes, with random weights, compiled to FP16 engines with TensorRT for RTX; no GPU is needed.

    python benchmarks/engines.py [DiT-S-2-vq-f8 ...] [--target sm86] [--work FOLDER] [--json FILE]

A model is exported to a bundle in half precision, unless it is in --work already, and ``mmgen build`` compiles it for
one target; the first one also for every desktop GPU at once.  Seconds and peak memory are those of the process that
compiles a graph.  That the engines run, and how fast, only a GPU can tell.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from true_sizes import ROOT, bundle, export

sys.path[:0] = [str(ROOT / "tests" / name) for name in ("models", "oracles")]
MMGEN = [sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()"]


def main() -> None:
    """Parse the command line and run."""
    from diffusers_models import TRUE_SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(TRUE_SIZES))
    parser.add_argument("--target", default="sm86")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        names = args.models or list(TRUE_SIZES)
        records = [measure(name, work, (args.target,)) for name in names]
        records.append(measure(names[0], work, ()))
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


def measure(name: str, work: Path, targets: tuple[str, ...]) -> dict[str, Any]:
    """Compile one model for targets, none: all that this machine can build; prints and returns the figures."""
    folder = bundle(name, work, "fp16")
    if not (folder / "bundle.json").is_file():
        export(name, work, "fp16")
    options = [option for target in targets for option in ("--target", target)]
    command = [*MMGEN, "build", str(folder), *options, "--json"]
    built = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    place, engines = built["build"]["identity"]["place"], built["build"]["engines"]
    record = {
        "model": name,
        "targets": place["compute_capabilities"],
        "version": place["version"],
        "reused": built["reused"],
        "graphs": {role: figures(engine) for role, engine in engines.items()},
    }
    print(json.dumps(record), flush=True)
    return record


def figures(engine: dict[str, Any]) -> dict[str, Any]:
    """One graph's line of ``build.json``, rounded."""
    report = engine["report"]
    return {
        "seconds": round(report["seconds"], 1),
        "peak_gb": round(report["peak_bytes"] / 1e9, 2),
        "engine_mb": round(engine["bytes"] / 1e6, 1),
        "half_weight_share": round(
            report["half_weight_bytes"] / max(1, report["half_weight_bytes"] + report["float_weight_bytes"]), 4
        ),
        "layers": report["layers"],
        "half_layers": report["half_layers"],
        "float_layers": report["float_layers"],
    }


if __name__ == "__main__":
    main()
