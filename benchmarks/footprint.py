"""What it costs to have a generator on a machine: mmgen's runtime against diffusers with torch.

    python benchmarks/footprint.py [--runs 7] [--work build/footprint]

Run it where the extra ``export`` is installed.  It makes one DiT-S/2 pipeline
for 256 x 256 pictures at its published size, with random weights, saves it as
a diffusers folder and exports that folder in float32; then two clean
environments, ``pip install '.[ort]'`` and ``pip install diffusers torch
transformers accelerate`` as DiTPipeline's users are told.  Measured in both:

    size      bytes that the installation added to a new environment
    import    seconds until the library and its backend are imported
    run       seconds of a whole process: import, load, one picture, exit
    memory    peak resident bytes of that process

Runs are interleaved after one that isn't counted; figures are medians, and all
samples are in the JSON file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "footprint.json"
STEPS, CLASS = 10, 207

INSTALL = {
    "mmgen": [f"{ROOT}[ort]"],
    "diffusers": ["diffusers", "torch==2.13.0", "transformers", "accelerate"],
}
IMPORT = {
    "mmgen": "import onnxruntime; from mmgen.runtime import load",
    "diffusers": "import torch; from diffusers import DiTPipeline",
}
RUN = {
    "mmgen": f"""
from mmgen.runtime import load
with load("model.mmgen") as generator:
    picture = generator.generate(class_id={CLASS}, steps={STEPS}, guidance=4.0, seed=0).media[0]
""",
    "diffusers": f"""
import numpy, torch
from diffusers import DiTPipeline
pipeline = DiTPipeline.from_pretrained("model")
pipeline.set_progress_bar_config(disable=True)
seed = torch.Generator().manual_seed(0)
picture = pipeline([{CLASS}], num_inference_steps={STEPS}, guidance_scale=4.0, generator=seed).images[0]
picture = numpy.asarray(picture)
""",
}
REPORT = """
import json, resource
assert picture.shape == (256, 256, 3)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def make_model(work: Path) -> None:
    """``model``, a diffusers folder, and ``model.mmgen``, the bundle made from it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    if (work / "model.mmgen").exists():
        return
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_layers=12, num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, sample_size=32
    )
    for parameter in transformer.parameters():
        if not parameter.any():  # zero-initialised layers would leave the network nothing to compute
            torch.nn.init.normal_(parameter, std=0.02)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256, **blocks)
    DiTPipeline(transformer, autoencoder, DDIMScheduler()).save_pretrained(work / "model")
    export = "from mmgen.export.cli import main; main()"
    subprocess.run([sys.executable, "-c", export, "model", "--fp32", "-o", "model.mmgen"], cwd=work, check=True)


def make_environment(name: str, work: Path) -> int:
    """Install into a new environment; returns the bytes that this added."""
    python, record = work / name / "bin" / "python", work / name / "added.json"
    if not record.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(work / name)], check=True)
        before = bytes_on_disk(work / name)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *INSTALL[name]], check=True)
        record.write_text(json.dumps(bytes_on_disk(work / name) - before))
    return int(json.loads(record.read_text()))


def bytes_on_disk(folder: Path) -> int:
    """Space that the files of a folder take, links not followed."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def measure(name: str, script: str, work: Path) -> tuple[float, str]:
    """Wall-clock seconds of a process of an environment, and what it printed."""
    python = work / name / "bin" / "python"
    start = time.perf_counter()
    ran = subprocess.run([str(python), "-c", script], cwd=work, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, ran.stdout


def main() -> None:
    """Measure, write the results and print them, ratios first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "footprint")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    size = {name: make_environment(name, work) for name in INSTALL}
    make_model(work)
    keys = ("import", "run", "memory")
    samples: dict[str, dict[str, list[float]]] = {key: {name: [] for name in INSTALL} for key in keys}
    for turn in range(arguments.runs + 1):
        for name in INSTALL if turn % 2 else reversed(INSTALL):
            imported, _ = measure(name, IMPORT[name], work)
            ran, printed = measure(name, RUN[name] + REPORT, work)
            if turn:
                samples["import"][name].append(imported)
                samples["run"][name].append(ran)
                samples["memory"][name].append(json.loads(printed))
    medians: dict[str, dict[str, float]] = {"size": {n: float(s) for n, s in size.items()}}
    medians |= {key: {n: statistics.median(v) for n, v in each.items()} for key, each in samples.items()}
    record: dict[str, Any] = {
        "ratios": {key: each["mmgen"] / each["diffusers"] for key, each in medians.items()},
        "medians": medians,
        "samples": samples,
        "steps": STEPS,
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: installed(name, work) for name in INSTALL},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def cpu() -> str:
    """The processor's name, as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def installed(name: str, work: Path) -> dict[str, str]:
    """Versions of all packages in an environment."""
    command = [str(work / name / "bin" / "python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {package["name"]: package["version"] for package in json.loads(listed)}


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    units = {"size": (2**20, "MiB"), "import": (1, "s"), "run": (1, "s"), "memory": (2**20, "MiB")}
    lines = ["| | mmgen / diffusers | mmgen | diffusers + torch |", "|---|---|---|---|"]
    for key, (scale, unit) in units.items():
        ours, theirs = (record["medians"][key][name] / scale for name in INSTALL)
        lines.append(f"| {key} | **1/{1 / record['ratios'][key]:.1f}** | {ours:.3g} {unit} | {theirs:.4g} {unit} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
