"""The names, spoken by espeak-ng in many voices: ``python speech.py [--takes 16]`` caches them, and goes on if stopped.

``speech/HALF.samples`` holds int16 at 16 kHz, one utterance after another, and ``speech/HALF.npy`` an ``UTTERANCE``
for each.  The half ``heldout`` has voices and speeds that ``train`` has none of; ``plain`` is each name once in the
voice that the model is to speak with.
"""

import argparse
import json
import subprocess
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pictures import load_named
from scipy.fft import irfft, rfft
from scipy.signal import fftconvolve, resample_poly

RATE = 16_000
SAMPLES = 51_200  # of a clip: 3.2 s
UTTERANCE = np.dtype(
    [("name", "i4"), ("start", "i8"), ("length", "i4"), ("voice", "i4"), ("speed", "i4"), ("pitch", "i4")]
)
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbcwmd")
VARIANTS = {
    "train": [
        "m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3", "Alex", "Andy", "Annie", "Denis", "Gene",
        "Jacky", "Lee", "Mario", "Michael", "Mike", "adam", "anika", "antonio", "aunty", "belinda",
        "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "john", "klatt",
        "klatt2", "linda", "max", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "robert", "shelby",
        "steph", "travis", "zac", "Andrea", "Storm",
    ],
    "heldout": [
        "m7", "m8", "f4", "f5", "Alicia", "Hugo", "klatt3", "iven", "steph2", "victor", "edward2", "Marco",
        "michel", "sandro",
    ],
}  # fmt: skip
SPEEDS = {"train": ((130, 190),), "heldout": ((105, 122), (200, 220))}  # words a minute
PLAIN = ("en-us", 150, 50)

Samples = NDArray[np.float32]


def voices(half: str) -> list[str]:
    """As espeak-ng's option -v takes them."""
    if half == "plain":
        return [PLAIN[0]]
    return [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS[half]]


def speak(text: str, voice: str, speed: int, pitch: int) -> NDArray[np.int16]:
    """One utterance without the silence around it, at ``RATE``; spoken faster until it fits into a clip."""
    while True:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
        out = subprocess.run(command, check=True, capture_output=True).stdout
        rate = int.from_bytes(out[24:28], "little")  # its header of 44 bytes doesn't know the length of what follows
        wave = np.frombuffer(out[44:], "<i2")
        common = gcd(rate, RATE)
        wave = resample_poly(wave.astype(np.float32), RATE // common, rate // common)
        loud = np.flatnonzero(np.abs(wave) > 0.004 * 32768)
        if not loud.size:  # a voice that can't say it
            return np.zeros(RATE // 10, np.int16)
        wave = wave[max(0, loud[0] - 160) : loud[-1] + 800]
        if len(wave) <= SAMPLES:
            return wave.clip(-32768, 32767).astype(np.int16)
        speed = int(speed * len(wave) / SAMPLES) + 5


def phonemes(folder: Path, names: list[str]) -> list[str]:
    """How the plain voice says each name, a letter of the IPA for each phoneme; kept in ``phonemes.json``."""
    file = folder / "phonemes.json"
    if not file.is_file():
        command = ["espeak-ng", "-q", "--ipa", "-v", PLAIN[0]]
        said = [subprocess.run([*command, n], check=True, capture_output=True, text=True).stdout for n in names]
        file.write_text(json.dumps(["".join(c for c in s if c.isalpha()) for s in said]))
    return json.loads(file.read_text())


def record(folder: Path, half: str, texts: list[str], takes: int) -> None:
    """Append what is missing of ``takes`` utterances a name."""
    folder.mkdir(parents=True, exist_ok=True)
    samples, table = folder / f"{half}.samples", folder / f"{half}.npy"
    done = np.load(table) if table.is_file() else np.empty(0, UTTERANCE)
    end = int(done["start"][-1] + done["length"][-1]) if len(done) else 0
    rows, everyone = list(done), voices(half)
    with samples.open("r+b" if samples.is_file() else "w+b") as file:
        file.seek(2 * end)
        for n in range(len(rows), takes * len(texts)):
            take, name = divmod(n, len(texts))
            random = np.random.default_rng([take, name, len(half)])
            voice, pitch = int(random.integers(len(everyone))), int(random.integers(20, 81))
            if half == "plain":
                speed, pitch = PLAIN[1:]
            else:
                speed = int(random.integers(*random.choice(SPEEDS[half])))
            wave = speak(texts[name], everyone[voice], speed, pitch)
            file.write(wave.tobytes())
            rows.append(np.array((name, end, len(wave), voice, speed, pitch), UTTERANCE))
            end += len(wave)
            if (n + 1) % 500 == 0 or n + 1 == takes * len(texts):
                file.flush()
                np.save(table, np.array(rows, UTTERANCE))
                print(f"{half}: {n + 1} utterances, {end / RATE / 3600:.2f} h", flush=True)


class Speech:
    """One half's utterances, mapped."""

    def __init__(self, folder: Path, half: str) -> None:
        self.table = np.load(folder / "speech" / f"{half}.npy")
        self.samples = np.memmap(folder / "speech" / f"{half}.samples", np.int16, "r")
        order = np.argsort(self.table["name"], kind="stable")
        self.of_name = np.split(order, np.searchsorted(self.table["name"][order], np.arange(1, self.names)))

    @property
    def names(self) -> int:
        return int(self.table["name"].max()) + 1

    def wave(self, row: int) -> Samples:
        """Float32 in [-1, 1]."""
        start, length = int(self.table["start"][row]), int(self.table["length"][row])
        return self.samples[start : start + length].astype(np.float32) / 32768

    def draw(self, name: int, random: np.random.Generator) -> Samples:
        """Any utterance of a name."""
        return self.wave(int(random.choice(self.of_name[name])))

    def heard(self, name: int, random: np.random.Generator, varied: bool) -> Samples:
        """A clip of any utterance in a room; ``varied``: as other voices may say it.

        They are faster and higher, or slower and lower, by up to a seventh, and of another timbre.
        """
        wave = self.draw(name, random)
        if varied:
            places = np.arange(0, len(wave) - 1, random.uniform(0.86, 1.16))
            wave = coloured(np.interp(places, np.arange(len(wave)), wave), random)
        return in_a_room(wave, random)


def clip(wave: Samples, offset: int = 800) -> Samples:
    """(SAMPLES,) with the utterance ``offset`` samples after its start, cut where it doesn't fit."""
    out = np.zeros(SAMPLES, np.float32)
    wave = wave[: SAMPLES - offset]
    out[offset : offset + len(wave)] = wave
    return out


def clip_at(wave: Samples, peak: float) -> Samples:
    """A clip whose loudest sample is ``peak``; one of silence stays soft."""
    return clip(peak * wave / max(0.01, float(np.abs(wave).max())))


def coloured(wave: NDArray[np.float64], random: np.random.Generator) -> Samples:
    """A wave with bands of its spectrum louder or softer, by up to 10 dB."""
    spectrum = rfft(wave)
    octaves = np.linspace(0, 8, 9) / 8  # of the logarithm of frequency
    place = np.log2(1 + np.arange(spectrum.size) / spectrum.size * 255) / 8
    gain = np.interp(place, octaves, random.uniform(-10, 10, octaves.size))
    return irfft(spectrum * 10 ** (gain / 20), wave.size).astype(np.float32)


def in_a_room(wave: Samples, random: np.random.Generator) -> Samples:
    """A clip as a microphone may hear it: moved, louder or softer, at times with echoes and with noise."""
    out = clip(wave, int(random.integers(0, max(1, SAMPLES - len(wave)) + 1)))
    if random.random() < 0.4:  # echoes that fall by 60 dB in 0.1 to 0.5 s
        decay = random.uniform(0.1, 0.5)
        times = np.arange(int(RATE * decay), dtype=np.float32) / RATE
        echoes = random.standard_normal(times.size, np.float32) * 10 ** (-3 * times / decay)
        echoes *= random.uniform(0.05, 0.5) / np.linalg.norm(echoes)
        echoes[0] = 1
        out = fftconvolve(out, echoes)[:SAMPLES].astype(np.float32)
    out *= 10 ** (random.uniform(-20, 0) / 20) / max(1e-3, np.abs(out).max())
    if random.random() < 0.6:  # white to brown, 5 to 40 dB below
        noise = random.standard_normal(SAMPLES + 2, np.float32).view(np.complex64)
        noise /= np.maximum(np.arange(noise.size, dtype=np.float32), 50) ** np.float32(random.uniform(0, 1))
        hiss = irfft(noise, SAMPLES)
        wanted = np.sqrt((out**2).mean()) * 10 ** (-random.uniform(5, 40) / 20)
        out += hiss * wanted / np.sqrt((hiss**2).mean())
    return out.clip(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--takes", type=int, default=16, help="utterances of each name to train with")
    args = parser.parse_args()
    folder = Path("build/everyday")
    texts = [n.name for n in load_named(folder)]
    record(folder / "speech", "plain", texts, 1)
    record(folder / "speech", "heldout", texts, 1)
    record(folder / "speech", "train", texts, args.takes)


if __name__ == "__main__":
    main()
