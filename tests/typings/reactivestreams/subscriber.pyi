from abc import ABCMeta, abstractmethod
from collections.abc import Callable

from rsocket.payload import Payload

from .subscription import Subscription

# `value` isn't annotated; every stream of rsocket has payloads, except its leases.
class Subscriber(metaclass=ABCMeta):
    @abstractmethod
    def on_subscribe(self, subscription: Subscription) -> None: ...
    @abstractmethod
    def on_next(self, value: Payload, is_complete: bool = False) -> None: ...
    @abstractmethod
    def on_error(self, exception: Exception) -> None: ...
    @abstractmethod
    def on_complete(self) -> None: ...

class DefaultSubscriber(Subscriber):
    subscription: Subscription | None
    def __init__(
        self,
        on_next: Callable[[Payload, bool], object] | None = None,
        on_error: Callable[[Exception], object] | None = None,
        on_complete: Callable[[], object] | None = None,
        on_subscribe: Callable[[Subscription], object] | None = None,
    ) -> None: ...
    def on_subscribe(self, subscription: Subscription) -> None: ...
    def on_next(self, value: Payload, is_complete: bool = False) -> None: ...
    def on_error(self, exception: Exception) -> None: ...
    def on_complete(self) -> None: ...
