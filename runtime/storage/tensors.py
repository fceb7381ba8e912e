"""Names, shapes and dtypes of the inputs and outputs of a bundle's graphs, and what shapes are made of."""

K = 4  # state slots of a step graph: the current latents and up to three older quantities

# Tensor names of the graphs.  A conditioning tensor has a name of its own: it is an output of the condition graph
# and an input of the step graph; where there is no condition graph, it is the condition itself, whose ``tensor`` is
# none of the names here.  What hoisting took out of the step has names that the exporter gave: an output (R, ...) of
# the condition graph, with R the branch batch, or (N, ...) or (N, R, ...) of the timestep graph, whose item i is the
# step's input in evaluation i.  All of these are float32, or integers, but what is hoisted may be float16.
STATE = "state"  # (K, B, *L) float32; slot 0 holds the latents
TRANSITION = "transition"  # (K, K + 3) float32, over [state; x0; model output; noise]
PREDICTION = "prediction"  # (2,) float32: x0 = prediction[0] x + prediction[1] output
X0_LIMIT = "x0_limit"  # (1,) float32: x0 is clamped to [-limit, limit]; infinity: never
INPUT_SCALE = "input_scale"  # (1,) float32: the denoiser sees input_scale x
TIMESTEP = "timestep"  # (1,) float32: the timestep that the denoiser is conditioned on; of a masked process, if it is
GUIDANCE = "guidance"  # (G,) float32: weight of each branch, that of the requested conditions first
RESCALE = "guidance_rescale"  # (1,) float32: share of guidance's added spread that is taken back; not in every graph
NOISE = "noise"  # (B, *L) float32
KNOWN = "known"  # (2, B, *L) float32: data to keep, and the noise that is added to it
KEEP = "keep"  # (B, *L) float32: above 0 where data is kept
NEXT_LEVEL = "next_level"  # (2,) float32: what is kept becomes next_level[0] data + next_level[1] noise
NEXT_STATE = "next_state"  # (K, B, *L) float32
X0 = "x0"  # (B, *L) float32
LATENTS = "latents"  # (B, *L) float32
MEDIA = "media"  # (B, *media shape)
CODES = "codes"  # (B, ...) int64, where the decoder has a codebook
FEATURES = "features"  # (B, ...): what the graph of an input makes of its media, or what is embedded
EMBEDDING = "embedding"  # (B, D) float32 of length 1

# Of a masked process, instead of the state and the numbers above; ``masked.MaskedTable`` says what these numbers do.
TOKENS = "tokens"  # (B, *L) int64, with masks
NEXT_TOKENS = "next_tokens"  # (B, *L) int64
SHARPNESS = "sharpness"  # (1,) float32, as all numbers of a row of the table
TOP_K = "top_k"  # (1,)
CONFIDENCE = "confidence"  # (2,)
MASKED = "masked"  # (1,)
STAY = "stay"  # (1,)
WINDOW = "window"  # (1,)
REDRAW = "redraw"  # (1,)
THRESHOLD = "threshold"  # (1,); not in every graph
CHOICE = "choice"  # (B, *L) float32 uniform in [0, 1): chooses the codes
ORDER = "order"  # (B, *L) float32 uniform in [0, 1): noise of the confidence, and what stays masked

TENSORS = frozenset({
    STATE, TRANSITION, PREDICTION, X0_LIMIT, INPUT_SCALE, TIMESTEP, GUIDANCE, RESCALE, NOISE, KNOWN, KEEP, NEXT_LEVEL,
    NEXT_STATE, X0, LATENTS, MEDIA, CODES, FEATURES, EMBEDDING, TOKENS, NEXT_TOKENS, SHARPNESS, TOP_K, CONFIDENCE,
    MASKED, STAY, WINDOW, REDRAW, THRESHOLD, CHOICE, ORDER,
})  # fmt: skip
