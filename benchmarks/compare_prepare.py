"""What compare.py needs before it measures: environments, sources, exports.  What is there and up to date is kept."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from compare_models import Model, Peer

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
INSTALL = {
    "torch": ["-c", "compare_constraints.txt", "-e", f"{ROOT}[export]", "transformers", "accelerate", "pytest"],
    "onnxruntime": ["-c", "compare_constraints.txt", "numpy", "onnxruntime", "tokenizers"],
    "openvino": ["-c", "compare_constraints.txt", "numpy", "openvino", "tokenizers"],
    "mmgen": ["-c", "compare_constraints.txt", "-e", f"{ROOT}[ort,openvino]"],
    "optimum": ["optimum-onnx[onnxruntime]==0.1.0", "diffusers", "torch==2.13.0"],  # wants an older transformers
}
DONE = "compare.key"  # a file in what was made, written last: what it was made of
EXPORT = {"fp32": ["--fp32"], "fp16": ["--fp16", "--no-engines"], "whole": ["--fp32", "--no-hoist"]}


def python(work: Path, environment: str) -> Path:
    """The interpreter of an environment."""
    return work / "venvs" / environment / "bin" / "python"


def prepare(model: Model, peers: Sequence[Peer], work: Path) -> dict[str, str]:
    """Make everything that is missing; returns who can't play because that failed, and why."""
    failed: dict[str, str] = {}

    def attempt(make: Callable[..., None], what: Model | str, *rest: str, needed_by: Sequence[Peer]) -> None:
        try:
            make(what, *rest, work)
        except subprocess.CalledProcessError as error:  # which has said why on stderr
            named = " ".join([make.__name__, *rest])
            failed.update({peer.name: f"its {named} can't be made: code {error.returncode}" for peer in needed_by})

    work.mkdir(parents=True, exist_ok=True)
    attempt(environment, "torch", needed_by=peers)  # which also exports
    for name in sorted({peer.environment for peer in peers} - {"torch"}):
        attempt(environment, name, needed_by=[peer for peer in peers if peer.environment == name])
    attempt(source, model, needed_by=peers)
    for policy in sorted({peer.bundle for peer in peers if peer.bundle}):
        attempt(bundle, model, policy, needed_by=[peer for peer in peers if peer.bundle == policy])
    return failed


def environment(name: str, work: Path) -> None:
    """Install what a peer's users install."""
    interpreter = python(work, name)
    key = f"{INSTALL[name]} {_hash([HERE / 'compare_constraints.txt', ROOT / 'constraints.txt'])}"
    if _done(folder := work / "venvs" / name, key):
        return
    _tell(f"installing {name}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *INSTALL[name]], check=True, cwd=HERE, stdout=sys.stderr)
    _finish(folder, key)


def source(model: Model, work: Path) -> None:
    """A model's folder: its weights as diffusers has them, and ONNX as torch alone exports it."""
    models = ("diffusers_models", "amused_models", "action_head")
    weights = [ROOT / "tests" / "models" / f"{name}.py" for name in models]
    weights.append(ROOT / "checkpoints" / "emoji" / "config.json")  # has the hash of its own
    key = f"{model.latents} {model.layers} {_hash([HERE / 'compare_sources.py', *weights])}"
    if _done(folder := work / model.name, key):
        return
    _tell(f"making {model.title}")
    folder.mkdir(exist_ok=True)
    command = [python(work, "torch"), HERE / "compare_sources.py", model.name, folder]
    subprocess.run(command, check=True, stdout=sys.stderr)
    _finish(folder, key)


def bundle(model: Model, policy: str, work: Path) -> None:
    """The bundle that mmgen plays, exported again if the exporter or the model is another one than then.

    One that was put there by hand is taken as it is.
    """
    made = work / model.name / f"{policy}.mmgen"
    if made.exists() and not (made / DONE).exists():
        return
    key = _hash([work / model.name / DONE, *(ROOT / "export").glob("*.py")])
    if _done(made, key):
        return
    _tell(f"exporting {model.title}, {policy}")
    given = {"text": [], "action": [f"{ROOT / 'tests' / 'models' / 'action_head.py'}:true_size"]}
    origin = given.get(model.kind, [str(work / model.name / "diffusers")])
    command = [python(work, "torch").parent / "mmgen-export", *origin, *EXPORT[policy], "-o", made]
    subprocess.run(command, check=True, stdout=sys.stderr)
    _finish(made, key)


def _done(folder: Path, key: str) -> bool:
    done = folder / DONE
    return done.exists() and done.read_text() == key


def _finish(folder: Path, key: str) -> None:
    (folder / DONE).write_text(key)


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _tell(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)
