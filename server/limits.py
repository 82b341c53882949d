"""What one peer, and all peers together, may make the server hold and do; each limit has a safe default."""

from dataclasses import dataclass, replace
from typing import Final

from shared.checks import check_positive
from shared.protocol.wire import MAX_METADATA_BYTES

__all__ = ["Limits"]

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's limits. What exceeds one is refused with the given error code, which is logged once a connection.

    What all connections together may hold is `max_reassembly_bytes`, `max_unstored_bytes` and `max_unsent_bytes`: 256
    MiB by default. With a store that takes everything to a disk as it comes, it is `max_spooling_bytes` at the most.

    A connection without an accepted SETUP may send nothing but that SETUP, of `max_setup_bytes`.

    Attributes:
        max_request_bytes: One payload, whole or in fragments: `too_large`. Larger files are sent in chunks.
        max_connection_bytes: What one connection's incomplete payloads hold: `server_full`.
        max_reassembly_bytes: The same for all connections together: `server_full`, for those that stall, or that hold
            far more than others.
        max_unstored_bytes: What has arrived of uploads in chunks and isn't stored yet, on all connections together.
            Until there is less, a connection that has some isn't read from; nor is one that has two thirds of it.
        max_unsent_bytes: What waits to be sent, on all connections together. Beyond it each connection has 16 KiB at a
            time.
        max_spooling_bytes: The last three together, with a store such as a folder.
        max_metadata_bytes: One payload's metadata: `too_large`. A larger frame without a payload, such as a keepalive,
            ends the connection.
        max_setup_bytes: A SETUP frame. A larger one ends the connection.
        max_store_bytes: Files and unfinished uploads of a memory store together, whole files that arrive in fragments
            included: `storage_full`. Each counts with its content, its name, and 1,024 bytes.
        max_file_bytes: One file: `too_large`.
        max_watched_files: Files that the consumers of all watches together know of, at some 200 bytes each, and once
            more for the listings that find what other programs have changed: `server_full`.
        max_streams: Requests under way on one connection, incomplete ones included: `too_many_streams`.
        max_requests: Requests under way on all connections together: `server_full`. Each connection may have 16 in any
            case.
        max_connections: Connections in all, TLS handshakes included. For one more, the connection that has waited
            longest for its SETUP to be accepted is closed; if there is none, the new one is rejected: `server_full`.
        max_connections_per_address: The same for one address; None for no limit, since a proxy is one address.
        setup_seconds: A connection whose TLS handshake, or then its accepted SETUP, takes longer than this is closed.
        idle_seconds: A connection that was silent for this long, keepalives included, is closed. A SETUP may announce
            a longer lifetime, up to ten times this.
        payload_seconds: An incomplete payload that grows by less than 32 KiB in this time is refused: `stalled`. So is
            an incomplete frame.
        blocked_seconds: A connection whose peer reads nothing of what waits for it is closed after this.
        max_errors_per_minute: Errors that one connection's requests may cause. One more ends it.
    """

    max_request_bytes: int = 192 * _MIB
    max_connection_bytes: int = 208 * _MIB
    max_reassembly_bytes: int = 208 * _MIB
    max_unstored_bytes: int = 24 * _MIB
    max_unsent_bytes: int = 24 * _MIB
    max_spooling_bytes: int = 64 * _MIB
    max_metadata_bytes: int = MAX_METADATA_BYTES
    max_setup_bytes: int = 16 * 1024
    max_store_bytes: int = 2048 * _MIB
    max_file_bytes: int = 1024 * 1024 * _MIB
    max_watched_files: int = 1_000_000
    max_streams: int = 1024
    max_requests: int = 8 * 1024
    max_connections: int = 1024
    max_connections_per_address: int | None = None
    setup_seconds: float = 10.0
    idle_seconds: float = 60.0
    payload_seconds: float = 30.0
    blocked_seconds: float = 30.0
    max_errors_per_minute: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, (name for name in self.__slots__ if getattr(self, name) is not None))

    def of_spooling(self) -> "Limits":
        """These limits, for a store that takes everything to a disk as it comes."""
        share = self.max_spooling_bytes // 8
        return replace(
            self,
            max_reassembly_bytes=min(self.max_reassembly_bytes, 3 * share),
            max_unstored_bytes=min(self.max_unstored_bytes, 3 * share),
            max_unsent_bytes=min(self.max_unsent_bytes, 2 * share),
        )
