"""What it costs to have a generator on a machine: mmgen's runtime against diffusers with torch.

    python benchmarks/footprint.py [--runs 7] [--work build/footprint]

Run it where the extra ``export`` is installed.  It makes two models: the embedded default, exported in half precision,
and one DiT-S/2 pipeline for 256 x 256 pictures at its published size, with random weights, saved as a diffusers folder
and exported in float32.  Then two clean environments, ``pip install '.[ort]'`` and ``pip install diffusers torch
transformers accelerate`` as DiTPipeline's users are told.  On the side of diffusers the DiT-S/2 is played by
DiTPipeline, and the embedded default by the torch modules that it was trained as, with diffusers' flow-matching
scheduler.  Measured in both:

    installed size    bytes that the installation added to a new environment
    import            seconds of a process that imports the library and its backend
    first picture     seconds from the start of a process to its first picture: import, load, 20 or 10 steps, decode
    peak memory       resident bytes of that process, files that it has mapped included

Graphs are optimised first, as ``mmgen build BUNDLE --target cpu`` does.  Runs are interleaved after one that isn't
counted; figures are medians, and all samples are in the JSON file, with what each package takes.
"""

import argparse
import datetime
import json
import math
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

INSTALL = {
    "mmgen": [f"{ROOT}[ort]"],
    "diffusers": ["diffusers", "torch==2.13.0", "transformers", "accelerate"],
}
IMPORT = {
    "mmgen": "import mmgen.runtime\nfrom mmgen.runtime.backends.ort import importing; importing.import_onnxruntime()",
    "diffusers": "import torch; from diffusers import DiTPipeline",
}
MMGEN = """
from mmgen.runtime import load
generator = load("{bundle}")
picture = generator.generate({request}, guidance=4.0, seed=0).media[0]
"""
FIRST = {
    "the embedded default": {
        "mmgen": MMGEN.format(bundle="emoji.mmgen", request="prompt='red apple', steps=20"),
        "diffusers": """
from pathlib import Path
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer
from mmgen.export.sources.checkpoint.text_to_picture import read
folder = Path("emoji")
_, autoencoder, dit = read(folder)
config, autoencoder, dit = autoencoder.config, autoencoder.eval(), dit.eval()
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
mean, std = (torch.tensor(each)[:, None, None] for each in (config.latents_mean, config.latents_std))
scheduler = FlowMatchEulerDiscreteScheduler()
scheduler.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
with torch.inference_mode():
    context = dit.text(torch.tensor([tokenizer.encode(text).ids for text in ("red apple", "")]))
    latents = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        asked, null = dit(latents.repeat(2, 1, 1, 1), t.repeat(2), context).chunk(2)
        latents = scheduler.step(null + 4.0 * (asked - null), t, latents).prev_sample
    codes = autoencoder.lookup(autoencoder.nearest_codes(std * latents + mean))
    picture = autoencoder.decode(codes).clamp(-1, 1).add(1).mul(127.5).round().byte()[0].permute(1, 2, 0).numpy()
""",
    },
    "DiT-S/2": {
        "mmgen": MMGEN.format(bundle="model.mmgen", request="class_id=207, steps=10"),
        "diffusers": """
import numpy, torch
from diffusers import DiTPipeline
pipeline = DiTPipeline.from_pretrained("model")
pipeline.set_progress_bar_config(disable=True)
seed = torch.Generator().manual_seed(0)
picture = pipeline([207], num_inference_steps=10, guidance_scale=4.0, generator=seed).images[0]
picture = numpy.asarray(picture)
""",
    },
}
ALONE = "import beyond numpy, without a backend"
WANTED = {  # what was set out to be reached: as it is said, and as a number
    "installed size": ("160 MB", 160e6),
    ALONE: ("0.06 s", 0.06),
    "first picture, the embedded default": ("1/8", 1 / 8),
    "peak memory, the embedded default": ("1/2", 1 / 2),
    "peak memory, DiT-S/2": ("1/2", 1 / 2),
}
REPORT = """
import json, re, time
assert picture.shape[2] == 3 and picture.std() > 1
end = time.time()
peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]  # ru_maxrss may be that of who started it
print(json.dumps([end, int(peak) * 1024]))
"""


def make_models(work: Path) -> None:
    """``model``, a diffusers folder, and ``emoji``, a checkpoint; the bundles made from them."""
    if not (work / "emoji.mmgen").exists():
        export(work, "--model", "emoji", "--fp16", "--no-engines", "-o", "emoji.mmgen")
        (work / "emoji").symlink_to(ROOT / "checkpoints" / "emoji")
    if not (work / "model.mmgen").exists():
        save_pipeline(work / "model")
        export(work, "model", "--fp32", "-o", "model.mmgen")


def export(work: Path, *arguments: str) -> None:
    """Run ``mmgen-export``."""
    subprocess.run(
        [sys.executable, "-c", "from mmgen.export.cli import main; main()", *arguments], cwd=work, check=True
    )


def save_pipeline(folder: Path) -> None:
    """DiT-S/2 for 256 x 256 pictures, random weights."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_layers=12, num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, sample_size=32
    )
    for parameter in transformer.parameters():
        if not parameter.any():  # zero-initialised layers would leave the network nothing to compute
            torch.nn.init.normal_(parameter, std=0.02)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    autoencoder = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=256, **blocks)
    DiTPipeline(transformer, autoencoder, DDIMScheduler()).save_pretrained(folder)


def make_environment(name: str, work: Path) -> int:
    """Install into a new environment; returns the bytes that this added."""
    python, record = work / name / "bin" / "python", work / name / "added.json"
    if name == "mmgen" or not record.exists():  # the tree may have changed
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(work / name)], check=True)
        before = bytes_on_disk(work / name)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *INSTALL[name]], check=True)
        record.write_text(json.dumps(bytes_on_disk(work / name) - before))
    return int(json.loads(record.read_text()))


def bytes_on_disk(folder: Path) -> int:
    """Space that the files of a folder take, links not followed."""
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


def packages(name: str, work: Path) -> dict[str, int]:
    """Bytes of what lies in an environment beside pip, by folder, the largest first; below 1 MB is left out."""
    (folder,) = (work / name / "lib").glob("python*/site-packages")
    sizes = {path.name: bytes_on_disk(path) for path in folder.iterdir() if path.is_dir()}
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    return {package: size for package, size in largest if size > 1e6 and package not in ("pip", "setuptools")}


def measure(name: str, script: str, work: Path) -> tuple[float, list[float]]:
    """Wall-clock seconds of a process of an environment, and what it printed; the first is when it had a picture."""
    python = work / name / "bin" / "python"
    environment = {**os.environ, "PYTHONPATH": "" if name == "mmgen" else str(ROOT / ".typing")}  # for the modules
    began, start = time.time(), time.perf_counter()
    ran = subprocess.run(
        [str(python), "-c", script], cwd=work, check=True, capture_output=True, text=True, env=environment
    )
    seconds = time.perf_counter() - start
    if not ran.stdout:
        return seconds, []
    ended, *others = json.loads(ran.stdout)
    return ended - began, others


def main() -> None:
    """Measure, write the results and print them, ratios first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "footprint")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    size = {name: make_environment(name, work) for name in INSTALL}
    make_models(work)
    for bundle in work.glob("*.mmgen"):
        subprocess.run([work / "mmgen" / "bin" / "mmgen", "build", bundle, "--target", "cpu"], check=True)
    keys = ["import", *(f"{what}, {model}" for model in FIRST for what in ("first picture", "peak memory"))]
    samples: dict[str, dict[str, list[float]]] = {key: {name: [] for name in INSTALL} for key in keys}
    samples[ALONE] = {"mmgen": []}
    for turn in range(arguments.runs + 1):
        for name in INSTALL if turn % 2 else reversed(INSTALL):
            found = {"import": measure(name, IMPORT[name], work)[0]}
            if name == "mmgen":
                found[ALONE] = measure(name, "import mmgen.runtime", work)[0] - measure(name, "import numpy", work)[0]
            for model, scripts in FIRST.items():
                first, (memory,) = measure(name, scripts[name] + REPORT, work)
                found |= {f"first picture, {model}": first, f"peak memory, {model}": memory}
            if turn:
                for key, value in found.items():
                    samples[key][name].append(value)
    medians: dict[str, dict[str, float]] = {"installed size": {n: float(s) for n, s in size.items()}}
    medians |= {key: {n: statistics.median(v) for n, v in each.items()} for key, each in samples.items()}
    record: dict[str, Any] = {
        "ratios": {key: each["mmgen"] / each["diffusers"] for key, each in medians.items() if "diffusers" in each},
        "medians": medians,
        "samples": samples,
        "packages": {name: packages(name, work) for name in INSTALL},
        "date": datetime.date.today().isoformat(),
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
    lines = ["| | mmgen / diffusers | mmgen | diffusers + torch | wanted |", "|---|---|---|---|---|"]
    for key, medians in record["medians"].items():
        scale, unit = (1e6, "MB") if key.startswith(("installed size", "peak memory")) else (1, "s")
        ours, theirs = (f"{medians[name] / scale:.4g} {unit}" if name in medians else "" for name in INSTALL)
        ratio = record["ratios"].get(key)
        wanted, limit = WANTED.get(key, ("", math.inf))
        got = ratio if wanted.startswith("1/") else medians["mmgen"]
        state = f"{wanted}: {'met' if got <= limit else 'not met'}" if wanted else ""
        lines.append(f"| {key} | {f'**1/{1 / ratio:.1f}**' if ratio else ''} | {ours} | {theirs} | {state} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
