from ..frame import Frame
from ..helpers import DefaultPublisherSubscription
from ..payload import Payload
from ..rsocket_base import RSocketBase
from ..streams.stream_handler import StreamHandler
from .interfaces import Requester

class RequestStreamRequester(StreamHandler, DefaultPublisherSubscription, Requester):
    payload: Payload
    def __init__(self, socket: RSocketBase, payload: Payload) -> None: ...
    def setup(self) -> None: ...
    def frame_received(self, frame: Frame) -> None: ...
