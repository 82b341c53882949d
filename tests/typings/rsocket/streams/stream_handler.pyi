from abc import ABCMeta, abstractmethod
from typing import Self

from ..frame import Frame
from ..rsocket_base import RSocketBase
from .backpressureapi import BackpressureApi

class StreamHandler(BackpressureApi, metaclass=ABCMeta):
    stream_id: int | None  # set when the stream is registered
    socket: RSocketBase  # annotated as one of its two bases; methods of both are called
    _initial_request_n: int  # the request frame's request-n
    def __init__(self, socket: RSocketBase) -> None: ...
    @abstractmethod
    def setup(self) -> None: ...
    @abstractmethod
    def frame_received(self, frame: Frame) -> None: ...
    def initial_request_n(self, n: int) -> Self: ...
    def send_cancel(self) -> None: ...
    def send_request_n(self, n: int) -> None: ...
    def _finish_stream(self) -> None: ...  # removes the stream from the connection's table
