"""The one kind of error that is the user's to mend."""


class UsageError(Exception):
    """Bad input: one sentence that says what is wrong, where, and what to do. Ends a command with exit code 2."""
