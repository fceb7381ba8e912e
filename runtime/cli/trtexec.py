"""Commands of NVIDIA's ``trtexec`` that compile a bundle's graphs as ``mmgen build`` does on a device."""

import shlex
from collections.abc import Iterable, Mapping

from mmgen.runtime.builds.engine_build import require_buildable
from mmgen.runtime.builds.profiles import Shape, Shapes, dynamic_shapes, profiles
from mmgen.runtime.storage.schema import Bundle

TYPED = ("--stronglyTyped", "--noTF32")  # types are the graph's, and float32 is float32
OPTIONS = ("--minShapes", "--optShapes", "--maxShapes")


def commands(bundle: Bundle) -> dict[str, list[str]]:
    """Return a command for each graph, by role, as its words.

    Raises:
        MmgenError: the bundle is for CPUs alone.
    """
    require_buildable(bundle)
    ranges = profiles(bundle, "tensorrt")
    return {
        role: [
            "trtexec",
            f"--onnx={bundle.path(graph.file)}",
            *TYPED,
            *_shapes(dynamic_shapes(graph.inputs, ranges)),
            f"--saveEngine={role}.engine",
        ]
        for role, graph in bundle.graphs.items()
    }


def text(commands: Mapping[str, Iterable[str]]) -> str:
    """Return a line for each, for a shell."""
    return "\n".join(map(shlex.join, commands.values()))


def _shapes(found: list[dict[str, Shapes]]) -> list[str]:
    """Arguments of one or several profiles; of a graph whose shapes are fixed there are none."""
    arguments = []
    for number, inputs in enumerate(found):
        if len(found) > 1:  # what follows is of this profile
            arguments.append(f"--profile={number}")
        for which, option in enumerate(OPTIONS):
            if inputs:
                arguments.append(f"{option}={','.join(_shape(name, each[which]) for name, each in inputs.items())}")
    return arguments


def _shape(name: str, shape: Shape) -> str:
    return f"{name}:{'x'.join(map(str, shape))}"
