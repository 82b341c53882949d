"""What the server serves, and how a request names a file in the tutorial."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import cached_property

from rsocket.extensions.composite_metadata import CompositeMetadata

from shared.protocol.metadata import MetadataItem
from shared.protocol.wire import chat_filename_mimetype, parse_name

from .stores.base import Store
from .stores.memory import MemoryStore
from .stores.owners import UploadOwners

__all__ = ["ChatData", "find_items", "get_file_name"]


@dataclass(frozen=True)
class ChatData:
    """The state that all connections share.

    Attributes:
        files: Where the files live: by default a dictionary of each file's content by name, in memory, as in the
            tutorial; the server only puts `bytes` of its own there. Or any other `Store`.
    """

    files: MutableMapping[str, bytes] | Store = field(default_factory=dict[str, bytes])

    @cached_property
    def store(self) -> Store:
        """`files` as a `Store`, which keeps no copy of a dictionary's files."""
        return MemoryStore(self.files) if isinstance(self.files, MutableMapping) else self.files

    @cached_property
    def uploads(self) -> UploadOwners:
        """The newest channel of each unfinished upload."""
        return UploadOwners()


def get_file_name(composite_metadata: CompositeMetadata) -> str:
    """The file that a request is about: its one `chat/file-name` item.

    Raises:
        InvalidRequest: There is none, or more than one.
        InvalidName: It is empty, over 1,024 bytes, not UTF-8, or has NUL or control characters.
    """
    return parse_name(find_items(composite_metadata, chat_filename_mimetype))


def find_items(composite_metadata: CompositeMetadata, *mimetypes: bytes) -> list[MetadataItem]:
    """The items of these mimetypes, in place of rsocket's."""
    return [
        MetadataItem(mimetype, bytes(item.content or b""))
        for mimetype in mimetypes
        for item in composite_metadata.find_by_mimetype(mimetype)
    ]
