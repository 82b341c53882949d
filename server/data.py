"""What the server serves, and the tutorial's way to name a file in a request."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import cached_property

from rsocket.extensions.composite_metadata import CompositeMetadata

from shared.protocol.metadata import MetadataItem
from shared.protocol.wire import chat_filename_mimetype, parse_name

from .routes.upload import UploadOwners
from .stores.base import Store
from .stores.memory import MemoryStore

__all__ = ["ChatData", "get_file_name"]


@dataclass(frozen=True)
class ChatData:
    """The state that all connections share.

    Attributes:
        files: Where the files live: by default a dictionary of each file's content by name, in memory, as in the
            tutorial; what the server stores there is `bytes` of its own. Or any other `Store`.
    """

    files: MutableMapping[str, bytes] | Store = field(default_factory=dict[str, bytes])

    @cached_property
    def store(self) -> Store:
        """`files` as a `Store`; a dictionary stays the one place where its files are."""
        return MemoryStore(self.files) if isinstance(self.files, MutableMapping) else self.files

    @cached_property
    def uploads(self) -> UploadOwners:
        """Who has which unfinished upload."""
        return UploadOwners()


def get_file_name(composite_metadata: CompositeMetadata) -> str:
    """The file that a request is about: its one `chat/file-name` item.

    Raises:
        InvalidRequest: There is none, or more than one.
        InvalidName: It is empty, over 1,024 bytes, not UTF-8, or has NUL or control characters.
    """
    found = composite_metadata.find_by_mimetype(chat_filename_mimetype)
    return parse_name([MetadataItem(chat_filename_mimetype, bytes(item.content or b"")) for item in found])
