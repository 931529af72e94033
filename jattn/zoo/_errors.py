"""The one exception of the zoo that its user is meant to read."""


class UsageError(ValueError):
    """Something the user can mend, in one line: a bad flag, a checkpoint made with other settings."""
