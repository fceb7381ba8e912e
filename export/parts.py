"""What a model is made of, by its process: its graphs, and its golden run in torch."""

from collections.abc import Mapping

from mmgen.export import graphs, masked_graph, masked_run, torch_run
from mmgen.export.graphs import Source
from mmgen.export.model import Model
from mmgen.export.torch_run import TorchRun
from mmgen.runtime.bundle import Bundle, Role
from mmgen.runtime.process import Masked


def sources(model: Model) -> dict[Role, Source]:
    """Every graph of a model, in the order a request meets them."""
    return masked_graph.sources(model) if isinstance(model.process, Masked) else graphs.sources(model)


def run_torch(model: Model, parts: Mapping[Role, Source], bundle: Bundle) -> TorchRun:
    """Run the golden request; ``bundle`` is the manifest so far."""
    run = masked_run.run_torch if isinstance(model.process, Masked) else torch_run.run_torch
    return run(model, parts, bundle)
