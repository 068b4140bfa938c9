"""Why a request is refused: an HTTP status and OpenAI's error object."""

from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: one line for whoever sent the request.
        field: the path of the field that is wrong, such as `messages[0].role`.
    """

    def __init__(self, status: int, message: str, field: str | None = None):
        super().__init__(message)
        self.status, self.message, self.field = status, message, field

    def describe(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, kind)
        fields = {"message": self.message, "type": kind, "param": self.field, "code": None}
        return {"error": fields}
