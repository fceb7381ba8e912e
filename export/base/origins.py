"""Which line of the user's code a node comes from, for errors; it is not kept in a bundle.

Torch notes for every operator the lines of Python that it was called from.  The innermost one outside torch goes along
as a node's metadata until the graph is complete.
"""

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
import torch

ORIGIN = "mmgen.origin"  # metadata of a node: where in the user's code it comes from
SCOPES = "pkg.torch.onnx.name_scopes"  # torch's: the submodules it is in, as a Python list
TRACE = "pkg.torch.onnx.stack_trace"  # torch's: lines of Python, the innermost last
_LIBRARIES = tuple(str(Path(module).resolve().parent) + os.sep for module in (torch.__file__, onnx.__file__))
_STANDARD = sysconfig.get_paths()["stdlib"] + os.sep
_PACKAGES = ("site-packages", "dist-packages")  # which may lie below it
_OWN = str(Path(__file__).resolve().parents[1]) + os.sep  # the exporter, all rooms of it
_QUOTED = re.compile("'([^']*)'|\"([^\"]*)\"")  # the items of a list; a name may have commas, as of a slice
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<text>[^\n]+))?')


def of_trace(trace: str) -> str:
    """Return the innermost line outside torch of a formatted stack, as ``file:line: text``; "" if there is none."""
    found = [(match["file"], match["line"], match["text"]) for match in _FRAME.finditer(trace)]
    return _innermost((file, int(line), text) for file, line, text in found)


def of_error(error: BaseException) -> str:
    """Return the innermost line outside torch that an exception went through."""
    return of_frames(traceback.extract_tb(error.__traceback__))


def of_frames(frames: traceback.StackSummary) -> str:
    """Return the innermost line outside torch of a stack."""
    return _innermost((frame.filename, frame.lineno or 0, frame.line) for frame in frames)


def _innermost(frames: Iterable[tuple[str, int, str | None]]) -> str:
    theirs = [frame for frame in frames if is_users(frame[0])]
    if not theirs:
        return ""
    file, line, text = theirs[-1]
    return f"{file}:{line}: {text.strip()}" if text and text.strip() else f"{file}:{line}"


def is_users(file: str) -> bool:
    """Return whether a file is the user's: neither torch's, nor Python's, nor the exporter's."""
    standard = file.startswith(_STANDARD) and not any(f"{os.sep}{name}{os.sep}" in file for name in _PACKAGES)
    return not standard and not file.startswith(("<", *_LIBRARIES, _OWN))


def note(model: ir.Model) -> None:
    """Record the origin of each node that torch made, as metadata."""
    for node in model.graph:
        if origin := of_trace(node.metadata_props.get(TRACE, "")):
            node.metadata_props[ORIGIN] = origin


def module_of(node: ir.Node) -> str:
    """Return the path of the submodule that a node is in, such as ``blocks.3.attn``."""
    parts = [a or b for a, b in _QUOTED.findall(node.metadata_props.get(SCOPES, ""))]
    return parts[-2] if len(parts) > 1 else ""  # the last one is the operation


def where(node: ir.Node) -> str:
    """Describe a node by its module path and its line, as far as they are known, for an error."""
    known = (module_of(node), node.metadata_props.get(ORIGIN, ""))
    return ", ".join(part for part in known if part)


def forget(path: Path) -> None:
    """Remove the origins from a file; its weights stay as they are."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != ORIGIN]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)
