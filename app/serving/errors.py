"""Errors of the server, each with its HTTP status, in the form that OpenAI's clients read."""

import math
from typing import Any


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: the HTTP status.
        code: a word for programs, such as "model_not_found".
        message: what is wrong and what to do, for people.
        retry_after: seconds after which the same request may succeed; None if repeating it is of no use.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Whether and when to repeat the request. OpenAI's clients read both headers."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return an error as OpenAI writes it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
