"""Take trained generators out of torch: checkpoint to bundle.

What ``__all__`` names is promised; everything else may change with any release.  What needs torch is imported when it
is asked for, so that ``mmgen-export --help`` need not wait for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mmgen.runtime import EDM, Condition, Defaults, Diffusion, Flow, Masked, Media, MmgenError

if TYPE_CHECKING:
    from mmgen.export.base.model import Model, Output
    from mmgen.export.exporter import export
    from mmgen.export.graph_files.module import OnnxModule
    from mmgen.export.sources import resolve

__all__ = [
    "EDM", "Condition", "Defaults", "Diffusion", "Flow", "Masked", "Media", "MmgenError", "Model", "OnnxModule",
    "Output", "export", "resolve",
]  # fmt: skip
_LATER = {  # by name, the module that has it
    "Model": "base.model", "OnnxModule": "graph_files.module", "Output": "base.model", "export": "exporter",
    "resolve": "sources",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"mmgen.export.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
