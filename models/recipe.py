"""The recipe: everything that decides a model, with its default, unit and one line each.

``load_recipe("models/recipes/kws.yaml")`` reads one strictly (toolkit/config.py). The resolved recipe, defaults
included, is written beside every result with ``dump_config``. Frames are front-end frames of ``features.hop_length``
samples; ``features`` is the front end's own FeatureConfig (toolkit/tables.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.config import load_config, setting
from toolkit.errors import ConfigError
from toolkit.features import FeatureConfig

UNKNOWN, SILENCE = "unknown", "silence"  # the two labels that follow the words


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in the YAML file ``path``. Raises ConfigError."""
    return load_config(path, Recipe)


@dataclass(frozen=True)
class DataSettings:
    """Which clips, and how they are split."""

    words: tuple[str, ...] = setting(doc="the keywords: folder names and labels, in the order of the labels")
    layout: Literal["speech_commands", "folders"] = setting(
        "speech_commands", doc="Speech Commands with its split, or a folder of clips per word (SPEAKER_TAKE.wav)"
    )
    speakers: Literal["names", "sound"] = setting(
        "names", doc="who speaks a clip under the data root: as its file name says, or as its sound tells"
    )
    others: tuple[str, ...] = setting(
        (), doc="more sets, relative to the data root, of other words and background: all their words are unknown"
    )
    unknown_fraction: float = setting(
        2.0, unit="of the mean word count", low=0, high=100, doc="size of the unknown class in a training epoch"
    )
    silence_fraction: float = setting(
        0.7, unit="of the mean word count", low=0, high=100, doc="size of the silence class in a training epoch"
    )
    negatives: tuple[str, ...] = setting(
        (), doc="folders of long speech without the words, relative to the data root; cut into unknown training clips"
    )
    hard_negatives: tuple[str, ...] = setting(
        (), doc="folders of pieces that an earlier model took for a word (python -m models mine), in training only"
    )
    extra: tuple[str, ...] = setting(
        (), doc="folders of more clips, a folder per word, relative to the data root (text-to-speech); in training only"
    )
    extra_fraction: float = setting(
        0.15, unit="of the word clips", low=0, high=10, doc="clips of the words that `extra` adds to a training epoch"
    )
    train_words: Literal["recorded", "extra"] = setting(
        "recorded", doc="clips of the words in training: the recorded ones, or those of `extra` alone"
    )
    noise: tuple[str, ...] = setting(
        (), doc="folders of extra background recordings, relative to the data root; used in training only"
    )
    clip_s: float = setting(
        1.0,
        unit="s",
        low=0.2,
        high=10,
        doc="length of a clip; shorter ones end in zeros, of longer ones the loudest stretch is used",
    )
    validation_fraction: float = setting(
        0.1, unit="of speakers", low=0.02, high=0.5, doc="validation speakers where no validation_list.txt decides"
    )
    test_fraction: float = setting(
        0.1, unit="of speakers", low=0, high=0.5, doc="test speakers where no testing_list.txt decides"
    )
    tune_fraction: float = setting(
        0.5,
        unit="of validation speakers",
        low=0.1,
        high=0.9,
        doc="validation speakers for choosing the model; the others report its accuracy",
    )
    seed: int = setting(1, low=0, high=2**31 - 1, doc="draws the unknown and silence clips of tune and report")

    def __post_init__(self):
        if not self.words:
            raise ConfigError("words is empty: expected at least one keyword")
        for word in self.words:
            if word in (UNKNOWN, SILENCE) or word.startswith("_") or "/" in word or not word.strip():
                raise ConfigError(
                    f"words holds {word!r}: expected a folder name other than {UNKNOWN} and {SILENCE}, "
                    "which are made from the other folders and the background"
                )
        if self.train_words == "extra" and not self.extra:
            raise ConfigError("train_words is extra and extra is empty: expected a folder that holds the words")
        if len(set(self.words)) != len(self.words):
            twice = next(word for word in self.words if self.words.count(word) > 1)
            raise ConfigError(f"words holds {twice!r} twice: expected each keyword once")


@dataclass(frozen=True)
class SpecAugmentSettings:
    """Masks on the features (Park et al. 2019, without time warping)."""

    time_masks: int = setting(1, low=0, high=10, doc="masks over time per example")
    time_width: int = setting(10, unit="frames", low=0, high=200, doc="greatest width of a mask over time")
    mel_masks: int = setting(1, low=0, high=10, doc="masks over mel bands per example")
    mel_width: int = setting(5, unit="bands", low=0, high=64, doc="greatest width of a mask over mel bands")


@dataclass(frozen=True)
class AugmentSettings:
    """What happens to a training clip before the front end, and to its features after it."""

    context_s: float = setting(0.5, unit="s", low=0, high=10, doc="what a stream heard before the clip begins")
    context_speech_probability: float = setting(
        0.25, low=0, high=1, doc="contexts that hold the end of another utterance"
    )
    time_shift_ms: float = setting(100.0, unit="ms", low=0, high=1000, doc="greatest shift of the clip, either way")
    speed: tuple[float, float] = setting((0.9, 1.1), unit="times", low=0.5, high=2, doc="playing speed, pitch included")
    gain_db: tuple[float, float] = setting((-12.0, 6.0), unit="dB", low=-60, high=40, doc="level of the whole example")
    timbre_db: float = setting(
        0.0,
        unit="dB",
        low=0,
        high=20,
        doc="duller or brighter voices and microphones: standard deviation of a slope over 3 octaves; 0: as recorded",
        later=True,
    )
    noise_probability: float = setting(0.8, low=0, high=1, doc="examples with background noise")
    noise_snr_db: tuple[float, float] = setting(
        (0.0, 30.0), unit="dB", low=-20, high=80, doc="active speech over noise"
    )
    reverb_probability: float = setting(0.3, low=0, high=1, doc="examples heard through a simulated room")
    reverb_rt60_s: tuple[float, float] = setting(
        (0.1, 0.5), unit="s", low=0.05, high=2, doc="decay of the room by 60 dB"
    )
    silence_level_db: tuple[float, float] = setting(
        (-70.0, -20.0), unit="dB of full scale", low=-100, high=0, doc="level of the silence class, uniform in dB"
    )
    cut_out_probability: float = setting(
        0.0, low=0, high=1, doc="pieces of running speech of which about one word is cut out, with silence around it"
    )
    distinct_epochs: int = setting(
        50, unit="epochs", low=1, high=10000, doc="epochs drawn anew; later ones repeat them with other masks"
    )
    mixup_alpha: float = setting(0.0, low=0, high=10, doc="mixing of two examples (Zhang et al. 2018); 0 leaves it out")
    specaugment: SpecAugmentSettings = SpecAugmentSettings()

    def __post_init__(self):
        for name in ("speed", "gain_db", "noise_snr_db", "reverb_rt60_s", "silence_level_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(f"{name} is [{low}, {high}]: expected the lower bound first")


@dataclass(frozen=True)
class ModelSettings:
    """The network: a module of models/architectures by name, or a .py file by path, with its own parameters."""

    architecture: str = setting("ds_tc_resnet", doc="name of a module in models/architectures, or path of a .py file")
    parameters: dict[str, int | float | str | bool] = setting(
        {}, doc="width, blocks, kernel, dropout, ...: the arguments of the architecture, which checks their names"
    )
    channels: dict[str, int] = setting(
        {},
        low=1,
        high=65536,
        doc="filters or units of single layers in place of the architecture's, as python -m quantize.prune leaves them",
    )


@dataclass(frozen=True)
class TrainSettings:
    """Optimization of the float weights."""

    start: str | None = setting(
        None, doc="weights.npz to begin with, from the working directory: fine-tuning; nothing: random weights"
    )
    seed: int = setting(1, low=0, high=2**31 - 1, doc="initial weights, order and augmentation")
    epochs: int = setting(40, unit="epochs", low=1, high=10000, doc="passes over the training words")
    batch_size: int = setting(128, unit="examples", low=1, high=8192, doc="examples per step")
    learning_rate: float = setting(1e-3, low=1e-8, high=10, doc="greatest learning rate; falls as a cosine to zero")
    weight_decay: float = setting(1e-4, low=0, high=1, doc="decoupled decay of the kernels per step (AdamW)")
    warmup_epochs: float = setting(2.0, unit="epochs", low=0, high=1000, doc="linear rise of the learning rate")
    unknown_weight: float = setting(
        1.0, low=0.01, high=100, doc="weight of an unknown example in the loss: many of them teach, but do not outvote"
    )
    unknown_prior: float = setting(
        0.0,
        unit="nat",
        low=-10,
        high=10,
        doc="by which unknown is likelier in training than in use; the scores are without it (Menon et al. 2021)",
    )
    label_smoothing: float = setting(0.05, low=0, high=0.5, doc="share of the target spread over all labels")
    ema_decay: float = setting(
        0.999, low=0, high=0.99999, doc="running average of the weights per step; 0 leaves it out"
    )
    checkpoint_every: int = setting(5, unit="epochs", low=1, high=10000, doc="distance of two resumable checkpoints")
    strategy: Literal["single", "mirrored", "multi_worker"] = setting(
        "single", doc="one device, all GPUs of this machine, or the machines that TF_CONFIG names (models/strategy.py)"
    )


@dataclass(frozen=True)
class DistillSettings:
    """Teachers whose mean posterior is learnt beside the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    recipe: str | None = setting(None, doc="recipe of the teachers, from the working directory; nothing: no teacher")
    weights: tuple[str, ...] = setting((), doc="weights.npz of each teacher, from the working directory")
    share: float = setting(0.7, low=0, high=1, doc="share of the teachers in the loss; the labels have the rest")
    temperature: float = setting(2.0, low=0.5, high=20, doc="by which the logits of both are divided")

    def __post_init__(self):
        if (self.recipe is None) != (not self.weights):
            raise ConfigError("distill names a recipe or weights without the other: expected both, or neither")


@dataclass(frozen=True)
class PruneSettings:
    """Weights that become zero in training, the smallest first, more and more of them: python -m quantize.prune train.

    Zhu and Gupta 2017 (arXiv:1710.01878). It saves bytes where a model is stored compressed, not time: whole channels,
    which save both, are cut after a training (python -m quantize.prune cut) and stand in model.channels.
    """

    sparsity: float = setting(
        0.0, low=0, high=0.99, doc="share of the weights of each convolution and LSTM that are zero in the end"
    )
    pattern: Literal["unstructured", "2:4", "block"] = setting(
        "unstructured", doc="any; two of four consecutive inputs, which is a sparsity of 0.5; all four of them, or none"
    )
    begin: float = setting(0.1, low=0, high=1, doc="share of the training after which the first become zero")
    end: float = setting(0.6, low=0, high=1, doc="share of the training after which the last do")
    every: int = setting(50, unit="steps", low=1, high=100000, doc="distance of two choices of what is zero")

    def __post_init__(self):
        if self.begin >= self.end:
            raise ConfigError(f"begin is {self.begin} and end {self.end}: expected begin before end")
        if self.pattern == "2:4" and self.sparsity not in (0.0, 0.5):
            raise ConfigError(f"sparsity is {self.sparsity}: expected 0.5 for the pattern 2:4, or 0 for no pruning")


@dataclass(frozen=True)
class QuantizeSettings:
    """From float weights to int8."""

    method: Literal["post_training", "aware"] = setting(
        "post_training",
        doc="weights as they were trained, or trained with the rounding of int8: python -m quantize.qat",
    )
    clusters: int = setting(
        0, unit="values", low=0, high=255, doc="that the weights of each kernel share, by quantize.qat; 0: any"
    )
    representative_clips: int = setting(
        512,
        unit="clips",
        low=16,
        high=100000,
        doc="training clips that set the int8 ranges, drawn evenly over the labels",
    )
    seed: int = setting(1, low=0, high=2**31 - 1, doc="draws the representative clips")

    def __post_init__(self):
        if 0 < self.clusters < 4:
            raise ConfigError(f"clusters is {self.clusters}: expected 4 or more, or 0 for none")


@dataclass(frozen=True)
class DecisionSettings:
    """How scores become a label; part of every accuracy figure."""

    window_frames: int = setting(30, unit="frames", low=1, high=1000, doc="front-end frames whose scores are averaged")
    flush_frames: int = setting(30, unit="frames", low=0, high=1000, doc="frames of silence after a clip")
    threshold: float = setting(0.7, low=0, high=1, doc="mean score from which a stream reports a word")
    hold_frames: int = setting(
        10, unit="frames", low=1, high=1000, doc="for which a word stays above the threshold before it is reported"
    )
    refractory_frames: int = setting(75, unit="frames", low=0, high=10000, doc="pause after a report in a stream")


@dataclass(frozen=True)
class BudgetSettings:
    """What the finished bundle must keep; nothing: not limited."""

    accuracy_floor: float | None = setting(None, low=0, high=1, doc="least accuracy of the int8 model on report")
    mean_accuracy_floor: float | None = setting(
        None, low=0, high=1, doc="least mean accuracy of a release's trainings, int8 on report"
    )
    embedded_accuracy_floor: float | None = setting(
        None, low=0, high=1, doc="least accuracy of the int8 model on the embedded evaluation set"
    )
    max_accuracy_loss: float | None = setting(
        None, low=0, high=1, doc="greatest loss of accuracy from float to int8 on report"
    )
    max_accuracy_loss_bound: float | None = setting(
        None, low=0, high=1, doc="greatest upper 95 % bound of that loss, of one training (paired bootstrap over clips)"
    )
    max_accuracy_loss_upper: float | None = setting(
        None, low=0, high=1, doc="greatest upper 95 % bound of that loss, pooled over the trainings of a release"
    )
    false_accepts_per_hour: float = setting(
        0.5, unit="1/h", low=0.001, high=1000, doc="greatest upper 95 % bound; a release chooses its threshold by it"
    )
    false_reject_rate: float | None = setting(
        None, low=0, high=1, doc="greatest share of keywords that a release misses in the clean stream of report"
    )
    model_bytes: int | None = setting(None, unit="bytes", low=1, doc="greatest size of the flatbuffer")
    macs_per_second: int | None = setting(None, unit="MAC/s", low=1, doc="greatest cost of a second of audio")
    arena_bytes: int | None = setting(None, unit="bytes", low=1, doc="greatest tensor arena on a microcontroller")
    relative_cost: float | None = setting(
        None, unit="times", low=0.01, high=1000, doc="greatest CPU time of a 20 ms block, beside that of cost_reference"
    )
    cost_reference: str = setting("kws", doc="bundle, by name or path, that takes its turns in the same measurement")
    ops: tuple[str, ...] | None = setting(None, doc="the only operators; nothing: all that the runtimes here agree on")
    profiles: tuple[str, ...] = setting((), doc="device profiles, by name or as .yaml files from the working directory")
    must_measure: tuple[str, ...] = setting(
        (), doc="limits of this section that are broken where nothing could measure them"
    )

    def __post_init__(self):
        for name in self.must_measure:
            if getattr(self, name, None) is None or name in ("cost_reference", "profiles", "must_measure"):
                raise ConfigError(f"budget.must_measure names {name!r}: expected a limit that this section sets")


@dataclass(frozen=True)
class Recipe:
    """One model, from data to budgets."""

    schema: int = setting(choices=(1,), doc="version of this format")
    name: str = setting(doc="name of the bundle: small letters, digits, - and _")
    data: DataSettings = setting(doc="clips and their split")
    task: Literal["kws"] = setting("kws", doc="what the model does")
    version: str = setting("0.1.0", doc="version of the bundle")
    features: FeatureConfig = FeatureConfig()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    distill: DistillSettings = DistillSettings()
    prune: PruneSettings = PruneSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    decision: DecisionSettings = DecisionSettings()
    budget: BudgetSettings = BudgetSettings()

    def __post_init__(self):
        allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        if not self.name or set(self.name) - allowed or self.name[0] in "-_":
            raise ConfigError(f"name is {self.name!r}: expected small letters, digits, - and _, as in kws_small")

    @property
    def labels(self) -> tuple[str, ...]:
        """The words, then unknown and silence."""
        return (*self.data.words, UNKNOWN, SILENCE)
