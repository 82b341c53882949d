from abc import ABCMeta, abstractmethod

class Disposable(metaclass=ABCMeta):
    @abstractmethod
    def dispose(self) -> None: ...
