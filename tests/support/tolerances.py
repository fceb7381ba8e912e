"""How far two programs may differ: one table, each limit with the measured error it was set from.

Relative RMS is |a - b| / |b|, both in the 2-norm, unless a comment says otherwise.
"""

LIMITS: dict[str, float] = {
    "JPEG levels": 4,  # of 256: 3, the worst pixel of a smooth picture
    "film, levels": 4,  # of 256, on average: 2.9, MP4 whose colours are averaged over 2 x 2; 1.5 at most of the others
    "resampled sine": 1e-4,  # 3.9e-5, 440 Hz from 8 to 16 kHz; of which 2.5e-5 are the file's 16 bits
    "resampled away": 1e-4,  # of an amplitude of 0.5: 2.0e-5, 11 kHz at 16 kHz
    "sound, FLAC": 2e-4,  # 5.2e-5, 16 bits that were cut, not rounded; 2.5e-5 rounded
    "sound, MP3": 0.1,  # 0.052, most of it where a tone begins and ends
    "sound, WAV of floats": 1e-9,  # 0
    "sound, WAV of 24 bits": 1e-6,  # 1.7e-7
    "batch PSNR": 50.0,  # dB; see test_generator
    "solver, float64": 1e-10,  # 3.1e-12, Euler on the cosine schedule
    "solver, float64, DDPM": 2e-9,  # 6.3e-10: 1e-10 of noise that diffusers adds at the very end
    "solver, float64, noisiest": 1e-6,  # 5.1e-7, Heun in 2 steps from noise 20,000 times the signal; UniPC 1e-9
    "solver, float32": 1e-5,  # 3.6e-6, Euler with 100 exponential sigmas and zero terminal SNR
    "solver, float32, extrapolating": 2e-4,  # 6.8e-5, LMS, where steps differ most in length
    "solver, float32, Heun": 5e-4,  # 3.0e-4, 2 steps, where the second evaluation is at a far smaller sigma
    "solver, played": 1e-5,  # 1.4e-6, Heun; 1.4e-7 the others
    "solver, played from the middle": 1e-4,  # 1.4e-5, SDE; 1e-7 to 1e-6 the others
    "solver, diffusers in float32": 2e-5,  # 8.9e-6, DDPM; 7.4e-6 cosine schedule; 1e-6 with the others
    "timestep, diffusers in float32": 0.1,  # 0.06 training timesteps, Euler with exponential sigmas, cosine
    "order of convergence": 0.15,  # in the exponent: 2.09
    "spread of the data": 0.01,  # 0.005 of 0.5, 800 steps of DDPM
    "pipeline latents, fp32": 1e-5,  # 2.3e-6 after 20 steps
    "pipeline latents, fp16": 1e-2,  # 2.1e-3 after 20 steps; 4.6e-3 for DiT-S/2 after 4
    "pipeline decoder PSNR, fp32": 55.0,  # dB; 59.1, what rounding to 8 bits leaves
    "pipeline decoder PSNR, fp16": 45.0,  # dB; 58.6, as ONNX Runtime plays it on a CPU
    "pipeline pictures PSNR, fp32": 40.0,  # dB; 59, what rounding to 8 bits leaves
    "pipeline codes, fp32": 0.99,  # 1.0
    "pipeline codes, fp16": 0.95,  # 0.976 for DiT-S/2
    "traced graph": 2e-6,  # 3.6e-7
    "half, share of what another observation changes": 2e-2,  # 5.0e-3; 0.69 where the mean is taken off in half
    "four steps, fp32": 1e-6,  # 6.0e-8
    "four steps, fp16": 1e-3,  # 1.4e-4
    "angles in float32": 1e-4,  # 9e-6, angles up to 157 that torch has in float64
    "differences of near numbers": 1e-2,  # 0.0 against torch; 1.0 where a factor of 1.00001 is dropped
    "folded upsampling": 1e-6,  # 1e-7
    "step arithmetic": 1e-6,  # 1e-7
    # Half against float32, every half value rounded, relative RMS.
    "half, step of a DiT": 1e-3,  # 4.9e-4
    "half, graphs of the tiny model": 2.5e-3,  # 1.1e-3, decode: whole levels of a picture; the others 2.7e-4
    "half, decoded picture": 4e-3,  # 2.0e-3, whole levels
    "half, residual stream": 2e-3,  # 1.0e-3
    "half, one layer": 1.2e-3,  # 6.1e-4, attention
    "int8, a row": 1e-2,  # 9.0e-3, the worst of 64 rows of 256 normal numbers
    "ranges": 2e-6,  # 4.0e-7; two programs, largest value after a norm
    "guidance": 1e-6,  # 1.1e-7; branches apart and summed outside, six steps
    "solver from the middle": 1e-9,  # 2.7e-10, DDPM; 2.2e-11 the others
    "hoisted graph": 5e-6,  # 2.0e-6, written by hand with sums that cancel
    # OpenVINO in float32 against ONNX Runtime, which rounds what a half-precision bundle has in half.
    "OpenVINO, latents": 1e-3,  # 2.7e-4; 4.7e-4 of the embedded default
    "OpenVINO, codes": 0.95,  # 0.984
    "OpenVINO, PSNR": 50.0,  # dB, of the decoder alone; equal
    "OpenVINO bfloat16, latents": 1e-2,  # 4.1e-3; 7.2e-3 of the embedded default
    "OpenVINO bfloat16, PSNR": 50.0,  # dB, of the decoder alone; 56.0; 56.2 of the embedded default
    "group norm, channels last": 1e-6,  # 1.0e-7, as before it is rewritten
    "group norm, channels last, half": 1e-3,  # 2.2e-4, as before
    "int8, one product": 2e-2,  # 1.4e-2, the worst column; both factors have eight bits
    "int8, latents": 2e-2,  # 7.0e-3; 1.7e-2 of the embedded default, 4e-3 of a DiT-S/2
    "int8, PSNR": 35.0,  # dB; equal; 38.5 to 45 of the embedded default
    "widened, rounded once": 3e-4,  # 1.9e-4, the rounding of the output; 1.6e-3 where every operator rounds
    "spectrum": 1e-5,  # 2.8e-7, relative, against scipy's FFT, and there and back
    "prefix attention": 1e-4,  # 1.9e-6, logits of about 1
    "any to any, half, sound": 5e-2,  # 1.0e-2, relative RMS: phases that an iteration finds differ where sound is soft
    "any to any, half, embedding": 1e-3,  # 5.5e-5, against torch; vectors of length 1
    "hoisted latents": 1e-6,  # 0.0 in float32; a compiler may fuse the two differently
    "several outputs, half, media encoded": 1e-3,  # 1.5e-4, latents: one picture that torch encoded, one that did half
    "several outputs, guided": 1e-5,  # 1.2e-7, latents of about 1: a step with guidance, from two steps without
    "several outputs, half, embedding": 1e-3,  # 1.6e-4, against torch; vectors of length 1
    "ONNX file": 1e-5,  # 0.0, media after four steps, against the file in ONNX Runtime
    "ONNX file, half": 1e-2,  # 1.0e-4
    "terrain, fp32": 1e-4,  # 1.0e-6, against the file in ONNX Runtime
    "terrain, fp16": 5e-2,  # 2.8e-2, one step from noise of 80; a trained U-Net of 10 million weights
    "features": 1e-5,  # 2.4e-7, of about 1, against torch, float32
    "sound in sixteen bits, latents": 1e-4,  # 1.2e-6, of about 1
    "length of an embedding": 1e-6,  # 0.0; 6e-8 is one bit
}
