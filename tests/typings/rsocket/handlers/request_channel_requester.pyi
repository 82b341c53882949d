from asyncio import Event

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber

from ..payload import Payload
from ..rsocket_base import RSocketBase
from .interfaces import Requester
from .request_cahnnel_common import RequestChannelCommon

class RequestChannelRequester(RequestChannelCommon, Requester):
    def __init__(
        self,
        socket: RSocketBase,
        payload: Payload,
        publisher: Publisher | None = None,
        sending_done: Event | None = None,
    ) -> None: ...
    def subscribe(self, subscriber: Subscriber | None) -> None: ...
