from abc import ABCMeta, abstractmethod

from .subscriber import Subscriber

class Publisher(metaclass=ABCMeta):
    @abstractmethod
    def subscribe(self, subscriber: Subscriber) -> None: ...

class DefaultPublisher(Publisher):
    _subscriber: Subscriber  # set by `subscribe`
    def subscribe(self, subscriber: Subscriber) -> None: ...
