"""``mmgen-export``, also ``mmgen export``.  Torch is imported when an export starts, so that help needs none."""

import importlib.util
from pathlib import Path
from typing import Literal

import click

from mmgen.runtime import describe
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.terminal import Command, Progress, json_option, show

NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")  # of the extra "export"


@click.command("export", cls=Command)
@click.argument("source", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="The bundle; else NAME.mmgen.")
@click.option("--fp16", "policy", flag_value="fp16", help="Half precision, float32 only where measured ranges need it.")
@click.option("--fp32", "policy", flag_value="fp32", default="fp32", help="Single precision (the default).")
@click.option("--no-islands", is_flag=True, hidden=True, help="Half precision whatever the ranges, for diagnosis.")
@json_option
def main(
    source: str | None, output: Path | None, policy: Literal["fp16", "fp32"], no_islands: bool, as_json: bool
) -> None:
    """Turn a trained model into a bundle, proven against torch.

    SOURCE is a diffusers folder, an mmgen checkpoint folder, or module:function or file.py:function that returns an
    mmgen.export.model.Model.  Without it, the embedded default is exported.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise MmgenError(f"exporting needs {', '.join(missing)}", remedy="pip install 'mmgen[export]'")
    from mmgen.export.exporter import export
    from mmgen.export.sources import resolve

    with Progress() as progress:
        progress("reading the model", 0.0)
        model = resolve(source)
        bundle = export(
            model, output or Path(f"{model.name}.mmgen"), policy=policy, islands=not no_islands, progress=progress
        )
    record = {"bundle": str(bundle.folder), **describe.record(bundle)}
    show(record, as_json, lambda: f"{bundle.folder}\n{describe.summary(bundle)}")
