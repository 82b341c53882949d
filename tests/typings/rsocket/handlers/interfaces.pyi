from abc import ABCMeta, abstractmethod

from ..frame import Frame

class Requester(metaclass=ABCMeta):
    @abstractmethod
    def frame_received(self, frame: Frame) -> None: ...
