from .frame import (
    CancelFrame,
    KeepAliveFrame,
    MetadataPushFrame,
    PayloadFrame,
    RequestChannelFrame,
    RequestFireAndForgetFrame,
    RequestNFrame,
    RequestResponseFrame,
    RequestStreamFrame,
)
from .payload import Payload

def to_payload_frame(
    stream_id: int,
    payload: Payload,
    complete: bool = False,
    is_next: bool = True,
    fragment_size_bytes: int | None = None,
) -> PayloadFrame: ...
def to_request_n_frame(stream_id: int, n: int = 0x7FFFFFFF) -> RequestNFrame: ...
def to_cancel_frame(stream_id: int) -> CancelFrame: ...
def to_request_channel_frame(
    stream_id: int,
    payload: Payload,
    fragment_size_bytes: int | None = None,
    initial_request_n: int = 0x7FFFFFFF,
    complete: bool = False,
) -> RequestChannelFrame: ...
def to_request_stream_frame(
    stream_id: int, payload: Payload, fragment_size_bytes: int | None = None, initial_request_n: int = 0x7FFFFFFF
) -> RequestStreamFrame: ...
def to_request_response_frame(
    stream_id: int, payload: Payload, fragment_size_bytes: int | None = None
) -> RequestResponseFrame: ...
def to_keepalive_frame(data: bytes) -> KeepAliveFrame: ...
def to_fire_and_forget_frame(
    stream_id: int, payload: Payload, fragment_size_bytes: int | None = None
) -> RequestFireAndForgetFrame: ...
def to_metadata_push_frame(metadata: bytes) -> MetadataPushFrame: ...
