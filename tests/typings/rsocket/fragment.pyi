from asyncio import Future

from .local_typing import ByteTypes
from .payload import Payload

class Fragment(Payload):
    is_first: bool | None
    is_last: bool | None
    # Annotated as bytes; put into a frame unchanged, so a memoryview works.
    def __init__(
        self,
        data: ByteTypes | memoryview | None = None,
        metadata: ByteTypes | memoryview | None = None,
        is_last: bool | None = True,
        is_first: bool | None = True,
        sent_future: Future[None] | None = None,
    ) -> None: ...
