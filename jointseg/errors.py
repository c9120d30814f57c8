"""The one error that is the user's to mend, and others' messages made fit for it.

Not here: mistakes of ours, which are assertions and end with a traceback.
"""


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: what, where, which value, what is allowed.

    The command line prints it and exits with code 2.
    """


class OutOfRangeError(InputError):
    """What was given leads out of the range of numbers, or of a method: other settings or weights would not."""


class DeviceMemoryError(InputError):
    """A GPU has too little memory for what is asked of it."""


class DiskError(InputError):
    """A disk is full, failing or read-only: what was being done may succeed later."""


def one_line(error: BaseException) -> str:
    """The message of an error of any kind, in one line; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of its message that says anything; its kind where none does."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
