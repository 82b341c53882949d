from collections.abc import AsyncGenerator
from typing import TypeVar

from reactivestreams.publisher import DefaultPublisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import DefaultSubscription

from .frame import Frame
from .payload import Payload

T = TypeVar("T")

def payload_from_frame(frame: Frame) -> Payload: ...
def single_transport_provider(transport: T) -> AsyncGenerator[T]: ...  # an async generator function

class DefaultPublisherSubscription(DefaultPublisher, DefaultSubscription):
    def subscribe(self, subscriber: Subscriber) -> None: ...
