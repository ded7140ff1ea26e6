"""Errors that a user can cause. Each message says what, the value, what is allowed and what to do.

The command line prints the message on one line and exits with `exit_code`: 2 for bad input, 1 for a
run that failed. Anything that is not a VallexError is a defect of vallex and keeps its traceback.
"""


class VallexError(Exception):
    """Base of every error that a user can cause."""

    exit_code = 2


class TextError(VallexError):
    """A text that cannot be turned into phonemes."""


class ListError(VallexError):
    """A list of texts of which some cannot be spoken."""


class AudioError(VallexError):
    """A recording that cannot be read or used."""


class WeightsError(VallexError):
    """Weights that are not there, cannot be fetched, or are not what they should be."""


class CheckpointError(VallexError):
    """A model checkpoint that cannot be loaded or written."""


class PromptError(VallexError):
    """A voice prompt that cannot be read or used."""


class DataError(VallexError):
    """A data folder or prepared set that cannot be used."""


class ConfigError(VallexError):
    """A setting, preset or combination of them that is not known or not possible."""


class RunError(VallexError):
    """A run that is not there, is there already, or cannot be read."""


class TrainingError(VallexError):
    """A run that failed while it ran."""

    exit_code = 1
