"""What can go wrong: one class for each code of the service, and for an unreachable one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Failure:
    """What was said about a failed call, whatever protocol it came by."""

    code: str  # stable, for programs
    detail: str  # for people
    status: str = ""  # the protocol's own: "429", "RESOURCE_EXHAUSTED"; empty without an answer
    request_id: str | None = None
    retry_after_s: float | None = None


class ServiceError(Exception):
    """A call, or one image of several, that got no detections.

    Attributes:
        failure: what was said about it.
        retryable: whether the same call may succeed a little later.
    """

    code_of_class: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init__(self, failure: Failure) -> None:
        """Keeps what was said."""
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        """The code and the detail."""
        return f"{self.code}: {self.detail}"

    @property
    def code(self) -> str:
        """Stable name of the error, for programs."""
        return self.failure.code

    @property
    def detail(self) -> str:
        """One sentence for people."""
        return self.failure.detail

    @property
    def request_id(self) -> str | None:
        """What the service called the request; for a look into its logs."""
        return self.failure.request_id

    @property
    def retry_after_s(self) -> float | None:
        """When trying again is worth it, where the service said so."""
        return self.failure.retry_after_s


class InvalidImage(ServiceError):
    """The bytes are no image, or a broken one."""

    code_of_class = "invalid_image"


class UnsupportedImage(ServiceError):
    """The bytes are a file of a kind that is not accepted."""

    code_of_class = "unsupported_image"


class ImageTooLarge(ServiceError):
    """Too many bytes or pixels."""

    code_of_class = "image_too_large"


class InvalidOptions(ServiceError):
    """A threshold, count or label that the model does not have."""

    code_of_class = "invalid_options"


class Overloaded(ServiceError):
    """More requests are on their way than the service takes."""

    code_of_class = "overloaded"
    retryable = True


class NotReady(ServiceError):
    """The model is being loaded, or its engine replaced."""

    code_of_class = "not_ready"
    retryable = True


class ShuttingDown(ServiceError):
    """The service drains; another one may take the request."""

    code_of_class = "shutting_down"
    retryable = True


class DeadlineExceeded(ServiceError):
    """The time for the call ran out."""

    code_of_class = "deadline_exceeded"


class Unauthenticated(ServiceError):
    """No API key, or one that the service does not know."""

    code_of_class = "unauthenticated"


class Forbidden(ServiceError):
    """The API key does not open what was asked for."""

    code_of_class = "forbidden"


class InferenceFailed(ServiceError):
    """The model failed on this image."""

    code_of_class = "inference_failed"


class ConnectionFailed(ServiceError):
    """No service was reached, or it vanished before its answer."""

    code_of_class = "connection_failed"
    retryable = True


class UnreadableAnswer(ServiceError):
    """What answered does not speak as the service does."""

    code_of_class = "unreadable_answer"


_BY_CODE: dict[str, type[ServiceError]] = {
    error.code_of_class: error for error in ServiceError.__subclasses__()
}


def service_error(failure: Failure) -> ServiceError:
    """The error of the class that its code belongs to; codes of newer services get the base."""
    return _BY_CODE.get(failure.code, ServiceError)(failure)
