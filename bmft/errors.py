"""One family of errors, each named by what the caller can do about it."""


class BmftError(Exception):
    """Anything bmft refuses or cannot do; the message says which thing, what was expected, what to do."""


class ConfigError(BmftError, ValueError):
    """An option, config key or argument has a value that cannot be used: change the call."""


class PolicyError(ConfigError):
    """A gate policy has unknown or contradictory entries: change the policy."""


class NothingFitsError(ConfigError):
    """Every layer, block or channel is larger than the share of the weights that may move: raise the share."""


class DataError(BmftError):
    """A manifest, an image or a batch cannot be used: mend the data."""


class GroupError(DataError):
    """Groups or their ids do not fit what was asked: name other groups or attributes."""


class CheckpointError(BmftError):
    """A checkpoint cannot be read or written as it is."""


class UntrustedPickleError(CheckpointError):
    """The file would run code when read: convert it, or trust it explicitly."""


class ArchitectureError(BmftError):
    """The architecture or the head is unknown, ambiguous, or does not fit the weights: name it."""


class MismatchError(BmftError):
    """A mask or patch was made for another model."""


class NonFiniteError(BmftError):
    """A loss, gradient or weight is not a finite number."""


class ConstantPredictorError(BmftError):
    """The model answers the same for every image; no fairness figure of it means anything."""


class WorkerError(BmftError):
    """A process that worked for this one died: start again, with fewer at once if memory is short."""


class MissingExtraError(BmftError, ImportError):
    """An optional package is not installed: install the extra the message names."""


class TrackerError(BmftError):
    """A tracker cannot be reached, or refuses the run: mend its settings, or leave ``--log`` out."""
