"""A model's graphs and its golden run in torch, by its process."""

from collections.abc import Mapping

from mmgen.export.base.model import Model
from mmgen.export.graphs import latent as graphs
from mmgen.export.graphs import masked as masked_graph
from mmgen.export.graphs.latent import Source
from mmgen.export.proof import masked_run, torch_run
from mmgen.export.proof.torch_run import TorchRun
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle, Role


def sources(model: Model) -> dict[Role, Source]:
    """Build every graph of a model, in the order in which a request runs them."""
    return masked_graph.sources(model) if isinstance(model.process, Masked) else graphs.sources(model)


def run_torch(model: Model, parts: Mapping[Role, Source], bundle: Bundle) -> TorchRun:
    """Run the golden request; ``bundle`` is the manifest so far."""
    run = masked_run.run_torch if isinstance(model.process, Masked) else torch_run.run_torch
    return run(model, parts, bundle)
