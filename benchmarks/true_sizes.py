"""Exports at published sizes, with random weights: time, memory, and parity with diffusers' own pipelines.

    python benchmarks/true_sizes.py [DiT-S-2-vq-f8 ...] [--policy fp16] [--steps 4] [--work FOLDER] [--json FILE]

For each model: a diffusers folder is written (and kept, in --work); ``mmgen
export`` runs in a process of its own, whose wall-clock seconds and peak resident
memory are taken; then the pipeline and the bundle make two pictures from the same
noise.  aMUSEd-256's tokens are compared one by one: with --policy fp32 they are to
be equal; in half precision one that differs changes all that follow.  DiT-XL/2
needs 3.3 GB of disk for its folder and as much again for a bundle.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

AMUSED, GUIDANCE = "aMUSEd-256", 3.0
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("models", "oracles")]


def main() -> None:
    """Parse the command line and run."""
    from diffusers_models import TRUE_SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*TRUE_SIZES, AMUSED]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(names))
    parser.add_argument("--policy", choices=["fp16", "fp32"], default="fp16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        records = [measure(name, work, args.policy, args.steps) for name in args.models or names]
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


def measure(name: str, work: Path, policy: str, steps: int) -> dict[str, Any]:
    """Export one model and compare it; prints and returns the figures."""
    compare = amused_parity if name == AMUSED else parity
    record = export(name, work, policy) | compare(work / name, bundle(name, work, policy), steps)
    print(json.dumps(record), flush=True)
    return record


def bundle(name: str, work: Path, policy: str) -> Path:
    """Where ``export`` puts a model's bundle."""
    return work / f"{name}-{policy}.mmgen"


def export(name: str, work: Path, policy: str) -> dict[str, Any]:
    """Write a model's diffusers folder, unless it is there, and export it; what that takes."""
    folder, made = work / name, bundle(name, work, policy)
    if not (folder / "model_index.json").is_file():
        if name == AMUSED:
            code = (f"from amused_models import AMUSED_256, amused_pipeline; from pathlib import Path\n"
                    f"amused_pipeline(Path({str(work / 'tokenizer')!r}), AMUSED_256).save_pretrained({str(folder)!r})")
        else:
            code = (f"from diffusers_models import TRUE_SIZES, build; from pathlib import Path\n"
                    f"t, v, *_ = TRUE_SIZES[{name!r}]; build(Path({str(folder)!r}), t, v, count=64)")  # fmt: skip
        child(code)
    command = ["from mmgen.export.cli import main; main()", str(folder), "-o", str(made), f"--{policy}", "--no-engines"]
    seconds, peak = timed([sys.executable, "-c", *command])
    return {
        "model": name,
        "policy": policy,
        "cores": os.cpu_count(),
        "export_seconds": round(seconds, 1),
        "export_peak_gb": round(peak / 1e9, 2),
        "bundle_gb": round(sum(f.stat().st_size for f in made.rglob("*") if f.is_file()) / 1e9, 3),
    }


def parity(folder: Path, bundle: Path, steps: int) -> dict[str, float]:
    """Two pictures of two classes by the pipeline and by the bundle."""
    from diffusers import DiTPipeline
    from diffusers_pipeline import figures, run_pipeline

    from mmgen.runtime import load

    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    channels, size = pipeline.transformer.config.in_channels, pipeline.transformer.config.sample_size
    noise = np.random.default_rng(0).standard_normal((2, channels, size, size)).astype(np.float32)
    theirs = run_pipeline(pipeline, [3, 7], noise, steps, 4.0)
    with load(bundle, "ort-cpu") as generator:
        result = generator.generate(class_id=[3, 7], noise=noise, steps=steps, guidance=4.0)
        return figures(pipeline, theirs, generator, result)


def amused_parity(folder: Path, bundle: Path, steps: int) -> dict[str, float]:
    """Two pictures of two prompts: shares of tokens, and of codes of the same pictures, that agree; PSNR in dB."""
    from amused_pipeline import run_pipeline
    from diffusers import AmusedPipeline
    from diffusers_pipeline import psnr

    from mmgen.runtime import load
    from mmgen.runtime.request.tokens import uniforms

    prompts = ["a red apple", "zebra"]
    pipeline = AmusedPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    size = pipeline.transformer.config.sample_size
    drawn = [u.swapaxes(0, 1).reshape(2, 2, -1) for u in uniforms(0, (2, size, size), steps).values()]
    seen, pictures = run_pipeline(pipeline, prompts, drawn, steps, GUIDANCE)
    with load(bundle, "ort-cpu") as generator:
        rows = [p.latents() for p in generator.stream(prompt=prompts, steps=steps, guidance=GUIDANCE, seed=0)]
        media, _ = generator.decode(seen[-1])
    agree = [float((got == want).mean()) for got, want in zip(rows, seen, strict=True)]
    return {
        "tokens after the first step": agree[0],
        "tokens": agree[-1],
        "codes that are used": len(np.unique(seen[-1])),
        "decoder": psnr(media, pictures / 255.0),
    }


def child(code: str) -> None:
    """Run code in a process of its own, so that its memory is given back."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "models")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def timed(command: list[str]) -> tuple[float, int]:
    """Wall-clock seconds and peak resident bytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
