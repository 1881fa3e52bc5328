"""Training examples from clips: what a microphone would have heard around and during the word.

An example is a canvas of ``context | clip | flush``: the end of what the stream heard before, the clip, and what
follows until the decision. In the order of the signal:

    source   a word; unknown: another word, a piece of running speech, a reversed word, a splice of two; silence
    speed    resampling in the frequency domain: tempo and pitch together, no aliasing
    place    shift; the end of another utterance in the context
    timbre   a smooth frequency response, of another voice and another microphone
    room     convolution with a synthetic room response
    noise    background at a signal-to-noise ratio, before and after the word too or only during it
    gain     level of the microphone; int16 with rounding and saturation

Every example is a function of (seed, epoch, number) alone: neither block size, threads nor order change it. Features
are masked (``specaugment``) and mixed (``mixup``) after the front end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.fft

from models.noise import FULL_SCALE, NoiseSource, background, coloured, coloured_noise, db, mains_hum, to_float
from models.plan import Plan, Source, plan_epoch
from models.recipe import UNKNOWN, AugmentSettings, Recipe
from models.waves import TrainingAudio
from toolkit.kws import NOT_KEYWORDS

ACTIVE_FRAME_S = 0.02
ROOMS = 200
PIECE_TRIES = 4  # draws of a piece of read speech until one is louder than a pause
PIECE_FLOOR = 1e-5  # mean square of a pause, full scale 1: -50 dB
DIGITAL_SILENCE = 0.1  # of the silence class: zeros or a last bit that toggles
VARIED_SILENCE, VARIED_NOISE = 0.5, 0.15  # chance of each variation of the noise, alone and under speech
CONTEXT_ZERO = 0.5  # of noisy examples: no noise before the clip, as after a reset
FLUSH_ZERO = 0.5  # of noisy examples: no noise after the clip, as when a file is classified
NOISE_COLOURS = (0.0, 1.0, 2.0)  # exponents of 1/f power: white, pink, brown


RUNNING = 0.75  # of the pieces: they run on through the context and the flush, as in a stream


@dataclass(frozen=True)
class Canvas:
    """Lengths in samples."""

    context: int
    clip: int
    flush: int

    @property
    def total(self) -> int:
        """Samples of one example."""
        return self.context + self.clip + self.flush


@dataclass(frozen=True)
class Banks:
    """What is computed once per training: room responses and synthesized noise."""

    canvas: Canvas
    rooms: np.ndarray  # complex64[ROOMS, n_fft // 2 + 1], direct sound at sample 0
    n_fft: int  # of the convolution: canvas and response without wrap
    noises: tuple[np.ndarray, ...]  # float32[over 10 s] each, mean square 1: white, pink, brown, mains hum


def canvas_of(recipe: Recipe) -> Canvas:
    """The canvas of a recipe; context and flush are whole frames, so that frames fall as on the device."""
    hop, rate = recipe.features.hop_length, recipe.features.sample_rate_hz
    return Canvas(
        context=round(recipe.augment.context_s * rate / hop) * hop,
        clip=round(recipe.data.clip_s * rate),
        flush=recipe.decision.flush_frames * hop,
    )


def make_banks(canvas: Canvas, settings: AugmentSettings, sample_rate_hz: int, seed: int) -> Banks:
    """Draw the room responses and the synthesized noise. The same seed gives the same banks."""
    rng = np.random.default_rng([seed, 0xBA])
    responses = [room_response(rng, rng.uniform(*settings.reverb_rt60_s), sample_rate_hz) for _ in range(ROOMS)]
    n_fft = scipy.fft.next_fast_len(canvas.total + max(map(len, responses)), real=True)
    rooms = np.stack([scipy.fft.rfft(response, n_fft) for response in responses])
    length = 2 * canvas.total + 10 * sample_rate_hz
    noises = [coloured_noise(rng, length, exponent) for exponent in NOISE_COLOURS]
    noises += [mains_hum(rng, length, sample_rate_hz, hum_hz) for hum_hz in (50, 60)]
    return Banks(canvas, rooms.astype(np.complex64), n_fft, tuple(noises))


def make_epoch(
    audio: TrainingAudio, banks: Banks, settings: AugmentSettings, seed: int, epoch: int, block: int = 512
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in blocks of at most ``block``: (int16[block, canvas.total], int32[block] labels).

    Every word clip comes once; the other classes are drawn anew each epoch. Determined by (seed, epoch).
    """
    plan = plan_epoch(audio, np.random.default_rng([seed, epoch]))
    for begin in range(0, len(plan.label), block):
        numbers = range(begin, min(begin + block, len(plan.label)))
        canvases = np.empty((len(numbers), banks.canvas.total), np.int16)
        for row, number in zip(canvases, numbers, strict=True):
            row[:] = make_example(audio, banks, settings, plan, number, np.random.default_rng([seed, epoch, number]))
        yield canvases, plan.label[begin : begin + len(numbers)]


def make_example(
    audio: TrainingAudio, banks: Banks, settings: AugmentSettings, plan: Plan, number: int, rng: np.random.Generator
) -> np.ndarray:
    """Example ``number`` of a plan, int16[canvas.total]."""
    canvas, source = banks.canvas, plan.source[number]
    if source == Source.SILENCE:
        sound = noise_on_canvas(audio, banks, rng, VARIED_SILENCE) * db(rng.uniform(*settings.silence_level_db))
        if rng.random() < DIGITAL_SILENCE:
            sound = rng.integers(-1, 2, canvas.total) / FULL_SCALE if rng.random() < 0.5 else np.zeros(canvas.total)
            sound = sound.astype(np.float32)
        if rng.random() < settings.context_speech_probability:
            add_earlier_speech(sound, audio, canvas, False, rng)
        return to_int16(sound)

    running = source in (Source.PIECE, Source.HARD) and rng.random() < RUNNING
    clip = source_clip(audio, plan, settings, number, rng, canvas.total if running else canvas.clip)
    clip = change_speed(clip, rng.uniform(*settings.speed))
    sound = np.zeros(canvas.total, np.float32)
    if running:
        place(sound, clip, (canvas.total - len(clip)) // 2)
    else:
        most = settings.time_shift_ms * audio.sample_rate_hz / 1000
        place(sound, clip, canvas.context + int(rng.uniform(-most, most)) + (canvas.clip - len(clip)) // 2)
    level = active_level(clip, audio.sample_rate_hz)
    if not running and rng.random() < settings.context_speech_probability:
        add_earlier_speech(sound, audio, canvas, audio.label_names[plan.label[number]] not in NOT_KEYWORDS, rng)
    if settings.timbre_db:
        sound = with_timbre(sound, settings.timbre_db, rng)
    if rng.random() < settings.reverb_probability:
        sound = in_room(sound, banks, int(rng.integers(len(banks.rooms))))
    if rng.random() < settings.noise_probability:
        sound += noise_on_canvas(audio, banks, rng, VARIED_NOISE) * (level / db(rng.uniform(*settings.noise_snr_db)))
    return to_int16(sound * db(rng.uniform(*settings.gain_db)))


def noise_on_canvas(audio: TrainingAudio, banks: Banks, rng: np.random.Generator, varied: float) -> np.ndarray:
    """Background noise of mean square 1, float32[canvas.total]; it may begin with the clip, as after a reset, and end
    with it, as a file does: an onset or an end is not a word."""
    canvas = banks.canvas
    noise = background(NoiseSource(audio.backgrounds, banks.noises, audio.sample_rate_hz), canvas.total, rng, varied)
    if rng.random() < CONTEXT_ZERO:
        noise[: canvas.context] = 0
    if rng.random() < FLUSH_ZERO:
        noise[canvas.context + canvas.clip :] = 0
    return noise


def source_clip(
    audio: TrainingAudio, plan: Plan, settings: AugmentSettings, number: int, rng: np.random.Generator, length: int
) -> np.ndarray:
    """The clean clip of an example with speech, float32[clip], full scale 1; of running speech float32[length]."""
    source, first = plan.source[number], plan.first[number]
    if source == Source.EXTRA:
        return to_float(audio.extra_waves[first])
    if source in (Source.PIECE, Source.HARD):
        recordings = audio.hard_negatives if source == Source.HARD else audio.negatives
        piece = random_piece(recordings[first], length, rng)
        if length == audio.waves.shape[1] and rng.random() < settings.cut_out_probability:
            return cut_out(piece, audio.sample_rate_hz, rng)
        return piece
    clip = to_float(audio.waves[first])
    if source == Source.REVERSED:
        return clip[::-1]
    if source == Source.SPLICE:
        second = plan.second[number]
        for _ in range(20):  # another word; a set of one word keeps what it has, reversed
            if audio.words[second] != audio.words[first]:
                return splice(clip, to_float(audio.waves[second]))
            second = rng.integers(len(audio.waves))
        return clip[::-1]
    return clip


def change_speed(clip: np.ndarray, speed: float) -> np.ndarray:
    """The clip played ``speed`` times as fast, by band-limited resampling: float32[n] -> float32[n / speed].

    The length is the next that the FFT likes, up to 1.3 % longer; the pitch follows the length.
    """
    fast = scipy.fft.next_fast_len(round(len(clip) / speed), real=True)
    if fast == len(clip):
        return clip
    spectrum = scipy.fft.rfft(clip)[: fast // 2 + 1]  # the ends wrap; they are silence or noise
    return scipy.fft.irfft(spectrum, fast) * np.float32(fast / len(clip))


def splice(first: np.ndarray, second: np.ndarray, fade: int = 160) -> np.ndarray:
    """The first half of one clip joined to the second half of another, by energy, over a fade of ``fade`` samples."""
    end, begin = (
        int(np.searchsorted(energy, energy[-1] / 2)) for energy in (np.cumsum(first**2), np.cumsum(second**2))
    )
    joined = np.zeros_like(first)
    joined[:end] = first[:end]
    tail = second[begin : begin + len(first) - end].copy()
    overlap = min(fade, end, begin, len(tail))
    ramp = np.linspace(0, 1, overlap, dtype=np.float32)
    joined[end - overlap : end] = joined[end - overlap : end] * (1 - ramp) + second[begin - overlap : begin] * ramp
    joined[end : end + len(tail)] = tail
    return joined


def random_piece(recording: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch of a long recording, float32[length], rather not one of its pauses."""
    piece = np.zeros(length, np.float32)
    for _ in range(PIECE_TRIES):
        start = int(rng.integers(max(1, len(recording) - length + 1)))
        stretch = to_float(recording[start : start + length])
        piece[: len(stretch)] = stretch
        if piece @ piece > PIECE_FLOOR * length:
            break
    return piece


def cut_out(piece: np.ndarray, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """About one word of running speech by itself, float32[n]: 0.25 to 0.8 of the piece, from one dip of its energy to
    another, with silence around it. New words in a new voice, which single recorded words never have enough of."""
    hop = sample_rate_hz // 100
    n = len(piece) // hop
    power = np.einsum("fs,fs->f", piece[: n * hop].reshape(n, hop), piece[: n * hop].reshape(n, hop))
    length = int(n * rng.uniform(0.25, 0.8))
    begin = int(rng.integers(n - length + 1))
    begin, end = (_quietest(power, frame, n // 12) * hop for frame in (begin, begin + length))
    window = np.zeros_like(piece)
    window[begin:end] = 1
    window = np.convolve(window, np.full(hop, 1 / hop, np.float32), "same")  # edges of 10 ms
    return piece * window


def _quietest(power: np.ndarray, frame: int, reach: int) -> int:
    low = max(0, frame - reach)
    return low + int(np.argmin(power[low : frame + reach + 1]))


def place(sound: np.ndarray, clip: np.ndarray, start: int) -> None:
    """Add ``clip`` to ``sound`` from sample ``start`` on, which may be negative; what does not fit is cut off."""
    begin, end = max(start, 0), min(start + len(clip), len(sound))
    if begin < end:
        sound[begin:end] += clip[begin - start : end - start]


def add_earlier_speech(
    sound: np.ndarray, audio: TrainingAudio, canvas: Canvas, any_word: bool, rng: np.random.Generator
) -> None:
    """Add the end of some other utterance to the context of ``sound``; unless ``any_word``, of none of the keywords, so
    that no moment of an example without a keyword holds one."""
    among = np.flatnonzero(any_word | (audio.labels == audio.label_names.index(UNKNOWN)))
    if not len(among) or not canvas.context:
        return
    earlier = to_float(audio.waves[rng.choice(among)])[-canvas.context :]
    place(sound, earlier * db(rng.uniform(-10, 0)), canvas.context - len(earlier))


def with_timbre(sound: np.ndarray, spread_db: float, rng: np.random.Generator) -> np.ndarray:
    """``sound`` through a random smooth frequency response (models.noise.coloured), at its own mean square: duller or
    brighter by ``spread_db`` over three octaves (standard deviation), and half as much of any other shape."""
    other = coloured(sound, spread_db / 2, rng, rng.normal(0, spread_db))
    power = float(other @ other)
    return other * np.float32(np.sqrt(float(sound @ sound) / power)) if power > 0 else other


def in_room(sound: np.ndarray, banks: Banks, room: int) -> np.ndarray:
    """``sound`` heard through room response ``room``; the direct sound keeps its place and level."""
    spectrum = scipy.fft.rfft(sound, banks.n_fft)
    spectrum *= banks.rooms[room]
    return scipy.fft.irfft(spectrum, banks.n_fft)[: len(sound)]


def active_level(clip: np.ndarray, sample_rate_hz: int) -> float:
    """Root mean square over frames of 20 ms within 20 dB of the loudest: speech without its pauses (as ITU-T P.56)."""
    length = round(ACTIVE_FRAME_S * sample_rate_hz)
    frames = clip[: len(clip) // length * length].reshape(-1, length)
    power = np.einsum("fs,fs->f", frames, frames) / length
    return float(np.sqrt(power[power >= power.max() / 100].mean()))


def room_response(rng: np.random.Generator, rt60_s: float, sample_rate_hz: int) -> np.ndarray:
    """A synthetic room: direct sound at sample 0, some early reflections, a tail that decays by 60 dB in ``rt60_s``.

    float64[...], cut where it has decayed by 40 dB. Direct to reverberant sound is uniform in 0..15 dB, about 3..0.5 m.
    """
    length = max(int(rt60_s * sample_rate_hz * 40 / 60), 2)
    time = np.arange(length) / sample_rate_hz
    tail = rng.standard_normal(length) * 10.0 ** (-3 * time / rt60_s)
    tail[: min(length, round(0.002 * sample_rate_hz))] = 0  # nothing returns within 2 ms
    early = rng.integers(min(length - 1, round(0.002 * sample_rate_hz)), min(length, round(0.03 * sample_rate_hz)), 6)
    tail[early] *= 3
    energy = tail @ tail
    response = tail * (db(-rng.uniform(0, 15)) / np.sqrt(energy)) if energy else tail
    response[0] = 1.0
    return response


def specaugment(codes: np.ndarray, settings: AugmentSettings, rng: np.random.Generator, fill: float) -> np.ndarray:
    """A copy of ``codes`` [n, T, n_mels] with masks over time and mel set to ``fill``, drawn anew for each example.

    ``fill`` is a value that silence has, e.g. the code of the log floor, or the mean. Widths are uniform in 0..width.
    """
    masks = settings.specaugment
    codes = codes.copy()
    n, frames, mels = codes.shape
    for count, width, size, axis in (
        (masks.time_masks, masks.time_width, frames, 1),
        (masks.mel_masks, masks.mel_width, mels, 2),
    ):
        position = np.arange(size)
        for _ in range(count):
            widths = rng.integers(0, min(width, size) + 1, n)
            starts = (rng.random(n) * (size - widths + 1)).astype(int)
            hit = (position >= starts[:, None]) & (position < (starts + widths)[:, None])  # [n, size]
            codes[np.broadcast_to(np.expand_dims(hit, 3 - axis), codes.shape)] = fill
    return codes


def mixup(
    features: np.ndarray, targets: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each example mixed with another of the batch: features float[n, ...], targets float[n, labels].

    The share of the example itself is Beta(alpha, alpha), and at least one half; alpha 0 changes nothing. Zhang et al.
    2018, arXiv:1710.09412.
    """
    if alpha == 0:
        return features, targets
    share = rng.beta(alpha, alpha, len(features)).astype(features.dtype)
    share = np.maximum(share, 1 - share)
    other = rng.permutation(len(features))
    wide = share.reshape(-1, *(1,) * (features.ndim - 1))
    return wide * features + (1 - wide) * features[other], share[:, None] * targets + (1 - share[:, None]) * targets[
        other
    ]


def to_int16(sound: np.ndarray) -> np.ndarray:
    """float32, full scale 1 -> int16, rounded to nearest even and saturated."""
    return np.clip(np.rint(sound * np.float32(FULL_SCALE)), -32768, 32767).astype(np.int16)
