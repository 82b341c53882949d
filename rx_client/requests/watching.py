"""From the items of `files.watch` to its events."""

from rsocket.payload import Payload

from shared.errors import InvalidName, InvalidRequest, ProtocolError
from shared.protocol.changes import ChangeKind, FileChange
from shared.protocol.messages import find_transfer
from shared.protocol.wire import decode_name

from ..watch import Added, Changed, Present, Ready, Removed, WatchEvent

__all__ = ["watch_event"]


def watch_event(item: Payload) -> WatchEvent | None:
    """The event of an item; None if it is of a later version.

    Raises:
        ProtocolError: It isn't what a watch sends.
    """
    try:
        change = FileChange.from_json(find_transfer(bytes(item.metadata or b"")) or {})
        match change.kind:
            case ChangeKind.READY:
                return Ready()
            case ChangeKind.REMOVED:
                return Removed(decode_name(item.data or b""))
            case ChangeKind.PRESENT | ChangeKind.ADDED | ChangeKind.CHANGED:
                if change.info is None:
                    raise InvalidRequest("it has no details")
                return {"present": Present, "added": Added, "changed": Changed}[change.kind](change.info)
            case _:
                return None
    except (InvalidName, InvalidRequest) as error:
        raise ProtocolError(f"the server sent a change that can't be read: {error.message}") from None
