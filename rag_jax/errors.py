"""The one exception for what a user can mend."""


class RagJaxError(Exception):
    """A mistake in a setting, file or input: one line that names it and says what to do.

    The commands in `launch/` print it as `error: ...` and exit with status 1. Any other exception
    is a fault of the library and keeps its traceback.
    """
