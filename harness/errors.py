"""The error that a user can correct."""


class UsageError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do. The command ends with exit code 2."""


class OutOfSpace(UsageError):
    """A disk is full. A run that needs it is not judged."""
