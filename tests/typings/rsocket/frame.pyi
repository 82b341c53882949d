from abc import ABCMeta, abstractmethod
from asyncio import Future
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from .error_codes import ErrorCode
from .fragment import Fragment
from .local_typing import ByteTypes

PROTOCOL_MAJOR_VERSION: Final = 1
PROTOCOL_MINOR_VERSION: Final = 0
CONNECTION_STREAM_ID: Final = 0
MAX_REQUEST_N: Final = 0x7FFFFFFF

class FrameType(IntEnum):
    SETUP = 1
    LEASE = 2
    KEEPALIVE = 3
    REQUEST_RESPONSE = 4
    REQUEST_FNF = 5
    REQUEST_STREAM = 6
    REQUEST_CHANNEL = 7
    REQUEST_N = 8
    CANCEL = 9
    PAYLOAD = 10
    ERROR = 11
    METADATA_PUSH = 12
    RESUME = 13
    RESUME_OK = 14
    EXT = 0xFFFF

class Frame(metaclass=ABCMeta):
    length: int
    prefix_length: int
    frame_type: FrameType
    stream_id: int
    # None in fragments with only the other one.
    metadata: ByteTypes | None
    data: ByteTypes | memoryview | None
    flags_ignore: bool
    flags_follows: bool
    flags_complete: bool
    metadata_only: bool
    fragment_size_bytes: int | None
    sent_future: Future[None] | None
    def __init__(self, frame_type: FrameType) -> None: ...
    @abstractmethod
    def parse(self, buffer: ByteTypes, offset: int) -> object: ...
    def serialize_frame_prefix(self, middle: bytes = b"", flags: int = 0) -> ByteTypes: ...
    def serialize(self, middle: bytes = b"", flags: int = 0) -> bytes: ...
    def write_data_metadata(self, writer_method: Callable[[ByteTypes], object]) -> None: ...

class FrameFragmentMixin(metaclass=ABCMeta):
    def get_next_fragment(self, requires_length_header: bool = True) -> Frame | None: ...

class SetupFrame(Frame):
    major_version: int
    minor_version: int
    keep_alive_milliseconds: int
    max_lifetime_milliseconds: int
    metadata_encoding: ByteTypes
    data_encoding: ByteTypes
    flags_lease: bool
    flags_resume: bool
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

# The parser's result for malformed bytes; not a `Frame`.
class InvalidFrame: ...

class ErrorFrame(Frame):
    error_code: ErrorCode
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

class KeepAliveFrame(Frame):
    flags_respond: bool
    last_received_position: int
    def __init__(self, data: ByteTypes = b"", metadata: ByteTypes = b"") -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

class RequestFrame(Frame):
    def parse(self, buffer: ByteTypes, offset: int) -> object: ...

class RequestResponseFrame(RequestFrame, FrameFragmentMixin):
    def __init__(self) -> None: ...

class RequestFireAndForgetFrame(RequestFrame, FrameFragmentMixin):
    def __init__(self) -> None: ...

class RequestStreamFrame(RequestFrame, FrameFragmentMixin):
    initial_request_n: int
    def __init__(self) -> None: ...

class RequestChannelFrame(RequestFrame, FrameFragmentMixin):
    initial_request_n: int
    def __init__(self) -> None: ...

class RequestNFrame(RequestFrame):
    request_n: int
    def __init__(self) -> None: ...

class CancelFrame(Frame):
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

class PayloadFrame(Frame, FrameFragmentMixin):
    flags_next: bool
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

class MetadataPushFrame(Frame):
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

class ResumeFrame(Frame):
    major_version: int
    minor_version: int
    def __init__(self) -> None: ...
    def parse(self, buffer: ByteTypes, offset: int) -> None: ...

initiate_request_frame_types: Final[
    tuple[
        type[RequestResponseFrame],
        type[RequestStreamFrame],
        type[RequestChannelFrame],
        type[RequestFireAndForgetFrame],
    ]
]

FragmentableFrame = (
    PayloadFrame | RequestResponseFrame | RequestChannelFrame | RequestStreamFrame | RequestFireAndForgetFrame
)

def parse_or_ignore(buffer: ByteTypes) -> Frame | None: ...
def get_header_length(frame: FragmentableFrame) -> int: ...
def new_frame_fragment(base_frame: FragmentableFrame, fragment: Fragment) -> Frame: ...
def exception_to_error_frame(stream_id: int, exception: Exception) -> ErrorFrame: ...
def error_frame_to_exception(frame: ErrorFrame) -> Exception: ...
def serialize_with_frame_size_header(frame: Frame) -> bytes: ...
def serialize_prefix_with_frame_size_header(frame: Frame) -> bytes: ...
