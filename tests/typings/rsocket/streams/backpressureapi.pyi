from abc import ABCMeta, abstractmethod
from typing import Self

class BackpressureApi(metaclass=ABCMeta):
    @abstractmethod
    def initial_request_n(self, n: int) -> Self: ...
