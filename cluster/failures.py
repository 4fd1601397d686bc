"""The errors of this package that are no ValueError."""


class RunFailed(RuntimeError):
    """A run that ended by an error in a worker; the message is that error's last line."""
