"""How far a bundle may be from what torch computed: one table for the exporter and for ``verify``.

Relative RMS is |a - b| / |b|, both in the 2-norm.
"""

# One graph on the inputs it meets in use, the worst of its outputs.
GRAPH_RMS = {"fp32": 1e-4, "fp16": 2e-2}
# Pictures of one graph on the same codes; a picture with every number off by one of 255 is 48 dB.
GRAPH_PSNR = {"fp32": 55.0, "fp16": 35.0}
# Codes of one graph on the same latents: the search is in float32 everywhere, so only ties may go either way.
GRAPH_CODES = 0.99
# Latents after each row, as a share of the relative RMS between two seeds; and where seeds hardly matter, alone.
TRAJECTORY_SHARE = {"fp32": 1e-3, "fp16": 0.1}
TRAJECTORY_RMS = {"fp32": 1e-4, "fp16": 1e-2}
