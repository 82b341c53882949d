"""What a SETUP has to be."""

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import PROTOCOL_MAJOR_VERSION, SetupFrame

from shared.errors import InvalidRequest

__all__ = ["check_setup"]


def check_setup(frame: SetupFrame) -> None:
    """Checks everything but credentials.

    Raises:
        RSocketProtocolError: This server doesn't serve such a connection.
        InvalidRequest: The same.
    """
    composite = WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA.value.name
    unsupported = ErrorCode.UNSUPPORTED_SETUP
    if frame.major_version != PROTOCOL_MAJOR_VERSION:
        reason = f"the version must be {PROTOCOL_MAJOR_VERSION}, not {frame.major_version}"
        raise RSocketProtocolError(unsupported, data=f"unsupported_setup: {reason}")
    if not frame.keep_alive_milliseconds or not frame.max_lifetime_milliseconds:
        reason = "invalid_setup: the time between keepalives, and the lifetime, must be more than 0"
        raise RSocketProtocolError(ErrorCode.INVALID_SETUP, data=reason)
    if frame.flags_resume:
        raise RSocketProtocolError(ErrorCode.REJECTED_SETUP, data="rejected_setup: there is no resumption here")
    if frame.flags_lease:
        raise RSocketProtocolError(unsupported, data="unsupported_setup: there is no lease here")
    if bytes(frame.metadata_encoding) != composite:
        raise InvalidRequest(f"the connection's metadata mimetype must be {composite.decode()}")
