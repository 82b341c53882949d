from .local_typing import ByteTypes

class Payload:
    data: ByteTypes | None
    metadata: ByteTypes | None
    def __init__(self, data: ByteTypes | None = None, metadata: ByteTypes | None = None) -> None: ...
    def __eq__(self, other: object) -> bool: ...
