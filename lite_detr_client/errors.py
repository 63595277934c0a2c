"""Errors of the client: one class per error code of the service, and for failed connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Failure:
    """Details of a failed call, the same for HTTP and gRPC."""

    code: str  # stable identifier, for programs
    detail: str  # one sentence, for people
    status: str = ""  # HTTP or gRPC status: "429", "RESOURCE_EXHAUSTED"; empty without a response
    request_id: str | None = None
    retry_after_s: float | None = None


class ServiceError(Exception):
    """Base class of all errors: a call, or one image of a batch, failed.

    Attributes:
        failure: the details.
        retryable: whether the same call may succeed later.
    """

    code_of_class: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init__(self, failure: Failure) -> None:
        """Stores the details."""
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        """The code and the detail."""
        return f"{self.code}: {self.detail}"

    @property
    def code(self) -> str:
        """Stable identifier of the error, for programs."""
        return self.failure.code

    @property
    def detail(self) -> str:
        """One sentence that describes the error, for people."""
        return self.failure.detail

    @property
    def request_id(self) -> str | None:
        """ID of the request, as in the logs of the service."""
        return self.failure.request_id

    @property
    def retry_after_s(self) -> float | None:
        """Seconds to wait before a retry, if the service sent them."""
        return self.failure.retry_after_s


class InvalidImage(ServiceError):
    """The data is not an image, or the image is damaged."""

    code_of_class = "invalid_image"


class UnsupportedImage(ServiceError):
    """The file format is not supported."""

    code_of_class = "unsupported_image"


class ImageTooLarge(ServiceError):
    """The image, or the whole request, has too many bytes, or the image has too many pixels."""

    code_of_class = "image_too_large"


class InvalidOptions(ServiceError):
    """The threshold, the maximum number of detections or a label is invalid."""

    code_of_class = "invalid_options"


class Overloaded(ServiceError):
    """The service has too many requests in flight."""

    code_of_class = "overloaded"
    retryable = True


class TooManyConnections(ServiceError):
    """The service has too many open connections; another instance may accept the request."""

    code_of_class = "too_many_connections"
    retryable = True


class NotReady(ServiceError):
    """The model is loading, or its engine is being replaced."""

    code_of_class = "not_ready"
    retryable = True


class ShuttingDown(ServiceError):
    """The service is shutting down; another instance may accept the request."""

    code_of_class = "shutting_down"
    retryable = True


class DeadlineExceeded(ServiceError):
    """The call did not finish within its timeout."""

    code_of_class = "deadline_exceeded"


class Unauthenticated(ServiceError):
    """The API key is missing or unknown."""

    code_of_class = "unauthenticated"


class Forbidden(ServiceError):
    """The API key lacks the required scope."""

    code_of_class = "forbidden"


class InferenceFailed(ServiceError):
    """The model failed on this image."""

    code_of_class = "inference_failed"


class ConnectionFailed(ServiceError):
    """The service could not be reached, or the connection closed before its response."""

    code_of_class = "connection_failed"
    retryable = True


class InvalidResponse(ServiceError):
    """The response is not one of this service."""

    code_of_class = "unreadable_answer"


_BY_CODE: dict[str, type[ServiceError]] = {
    error.code_of_class: error for error in ServiceError.__subclasses__()
} | {"body_too_large": ImageTooLarge}


# For codes that this client does not know, and for responses of proxies, which have none.
_BY_STATUS: dict[str, type[ServiceError]] = {
    "401": Unauthenticated,
    "403": Forbidden,
    "413": ImageTooLarge,
    "429": Overloaded,
    "502": ConnectionFailed,
    "503": NotReady,
    "504": DeadlineExceeded,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Forbidden,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": NotReady,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}


def class_of_status(status: str) -> type[ServiceError]:
    """Returns the class for an HTTP or gRPC status: "429", "RESOURCE_EXHAUSTED".

    `ServiceError` itself for statuses that say too little.
    """
    return _BY_STATUS.get(status, ServiceError)


def service_error(failure: Failure) -> ServiceError:
    """Returns an error of the class for the code; for an unknown code, of the class for the status.

    The error keeps an unknown code, but is retried as its status says: Ray's `replica_lost` has the
    status of a service that is not ready.
    """
    return (_BY_CODE.get(failure.code) or class_of_status(failure.status))(failure)
