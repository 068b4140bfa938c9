"""The exceptions that the commands turn into one line."""


class RagJaxError(Exception):
    """A mistake in a setting, file or input: one line that names it and says what to do.

    The commands in `launch/` print it as `error: ...` and exit with status 1. Any other exception
    is a fault of the library and keeps its traceback.
    """


class Preempted(BaseException):
    """The run ends here because it was asked to, with everything that it made on disk.

    The commands in `launch/` print its text, which says how the run goes on, and exit with
    status 0. No Exception, so that nothing that handles errors takes it for one.
    """
