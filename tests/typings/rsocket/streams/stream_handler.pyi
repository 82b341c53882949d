from abc import ABCMeta, abstractmethod
from typing import Self

from ..frame import Frame
from ..rsocket_base import RSocketBase
from .backpressureapi import BackpressureApi

class StreamHandler(BackpressureApi, metaclass=ABCMeta):
    stream_id: int | None  # set when the stream is registered
    socket: RSocketBase  # annotated as either of its two bases; the methods of both are called
    _initial_request_n: int  # what the request frame will ask for
    def __init__(self, socket: RSocketBase) -> None: ...
    @abstractmethod
    def setup(self) -> None: ...
    @abstractmethod
    def frame_received(self, frame: Frame) -> None: ...
    def initial_request_n(self, n: int) -> Self: ...
    def send_cancel(self) -> None: ...
    def send_request_n(self, n: int) -> None: ...
    def _finish_stream(self) -> None: ...  # takes the stream out of the connection's table
