"""The exceptions that the commands print as one line."""

_LONGEST = 5000  # characters of a message


class RagJaxError(Exception):
    """An error in a setting, file or input. The message is one line with a remedy.

    The commands in `launch/` print the message as `error: ...` and exit with status 1. Any other
    exception is a bug in the library and keeps its traceback.
    """

    def __init__(self, message: str = ""):
        """An error with a message, which may name things from a file: it becomes one line."""
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")


class OutputError(RagJaxError):
    """The output cannot be written; what else a command was asked for would be lost as well."""


class Preempted(BaseException):
    """The end of a run that was asked to stop, with its finished work saved on disk.

    The commands in `launch/` print the message, which says how to continue the run, and exit with
    status 0. Derives from BaseException, so that no handler of errors catches a stop.
    """
