"""Every error that this project raises on purpose, in one tree.

    EdgeAudioError                  exit 1   something failed; the message is one sentence for a person
    ├── UsageError                  exit 2   the command line or an argument makes no sense
    ├── ConfigError                 exit 2   a recipe, profile or FeatureConfig: file, path, value, nearest key
    ├── AudioError                  exit 1   audio that cannot be used
    │   ├── AudioFileError                   missing, empty, truncated, not audio, wrong rate or channels
    │   └── MicrophoneError                  missing, busy, vanished or silent microphone
    ├── BundleError                 exit 1   a bundle that must not be used
    │   ├── BundleFormatError                walk, bounds, hashes, schema or manifest
    │   ├── SignatureError                   of a bundle or keyring: unsigned, altered or signed by a stranger
    │   └── UnsupportedError                 a schema, front end, op or runtime that this version does not know
    ├── MissingPartError            exit 1   a library, compiler or device that is not installed; says how to get it
    ├── VerificationError           exit 1   what runs is not what was measured (self-test, step != whole, LSB bound)
    ├── BudgetError                 exit 1   a limit of the recipe or the device profile is exceeded
    ├── DataError                   exit 1   a training or evaluation set that cannot be used
    └── DeployError                 exit 1   a device that could not be reached or changed, or that went back

A message holds the thing, the value, the limit and the way out. The command line prints it after
``edge-audio: `` on stderr, without a traceback, and exits with ``exit_code``.
"""


class EdgeAudioError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is one sentence for a person."""

    exit_code = 1


class UsageError(EdgeAudioError):
    """The command line or an argument makes no sense."""

    exit_code = 2


class ConfigError(EdgeAudioError):
    """A recipe, a profile or a FeatureConfig is wrong."""

    exit_code = 2


class AudioError(EdgeAudioError):
    """Audio that cannot be used."""


class AudioFileError(AudioError):
    """A file that is missing, empty, truncated, not audio, or of the wrong rate or channel count."""


class MicrophoneError(AudioError):
    """A microphone that is missing, busy, vanished or silent."""


class BundleError(EdgeAudioError):
    """A bundle that must not be used."""


class BundleFormatError(BundleError):
    """The container, a hash or the manifest is not what it must be."""


class SignatureError(BundleError):
    """A bundle or keyring is unsigned, altered, or signed by a key that is not trusted."""


class UnsupportedError(BundleError):
    """A schema, front end, operation or runtime that this version does not know."""


class MissingPartError(EdgeAudioError):
    """A library, compiler or device that is not installed; the message says how to get it."""


class VerificationError(EdgeAudioError):
    """What runs is not what was measured."""


class BudgetError(EdgeAudioError):
    """A limit of the recipe or of the device profile is exceeded."""


class DataError(EdgeAudioError):
    """A training or evaluation set that cannot be used."""


class DeployError(EdgeAudioError):
    """A device could not be reached or changed, or it went back to what worked."""
