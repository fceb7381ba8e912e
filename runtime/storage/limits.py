"""How far a bundle may differ from what torch computes: one table for the exporter and for ``verify``.

Relative RMS is |a - b| / |b|, both in the 2-norm.  The comment at each limit has what was measured, for DiT-S/2 at
32 x 32 latents with an LDM-sized VQ decoder, random weights; rounding grows slowly with depth, and a wrong graph is
wrong by far more than any of these.
"""

# One graph on the inputs it gets in use, the worst of its outputs, one guidance branch at a time.
GRAPH_RMS = {"fp32": 1e-4, "fp16": 2e-2}  # 9.4e-7, 1.2e-3; logits of a trained model of tokens 2.2e-6, 2.9e-3
# Pictures of one graph on the same codes, in dB; with every number off by one of 255 it would be 48.
GRAPH_PSNR = {"fp32": 55.0, "fp16": 35.0}  # 85, 59
# Codes of one graph on the same latents, and tokens of one masked step on the same logits: the codebook search and the
# sampling are in float32 everywhere, so only ties may differ.
GRAPH_CODES = 0.99  # 1.0
# Scores of positions, logarithms of probabilities, so near that rounding decides between them; a share of a score
# above 1.
TIED_SCORES = {"fp32": 1e-5, "fp16": 2e-2}  # 7.2e-7, 1.1e-3: a small LLaDA, whose positions have nearly equal scores
# Codes of one encoder on the same media: its outputs lie between codes here and there.
ENCODED_CODES = {"fp32": 0.98, "fp16": 0.9}  # 0.997, 0.979, the embedded VQ-VAE on its own pictures
# Tokens of an evaluation that differ from torch's given the same tokens before it, all evaluations together, as a share
# of those that differ between two seeds; and where seeds hardly matter, alone.  This is about the loop: an error of a
# graph shows in its logits.  Of a trained model's tokens (1024 codes) half changed 0.2 %; of aMUSEd-256 with random
# weights (8192 codes) 4.9 %, a sixteenth of what another seed did.
TOKENS_SHARE = {"fp32": 0.05, "fp16": 0.25}  # 0, 0.06
TOKENS_DIFFERING = {"fp32": 0.01, "fp16": 0.05}  # 0, 0.002
# Latents after each evaluation, as a share of the relative RMS between two seeds; and where seeds hardly matter, alone.
TRAJECTORY_SHARE = {"fp32": 1e-3, "fp16": 0.1}  # 1.5e-7, 1.8e-3
TRAJECTORY_RMS = {"fp32": 1e-4, "fp16": 1e-2}
