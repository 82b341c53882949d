"""What one peer, and all peers together, may make the server hold and do; each limit with a safe default."""

from dataclasses import dataclass
from typing import Final

from shared.protocol.wire import MAX_METADATA_BYTES

__all__ = ["Limits"]

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's limits. Each is refused with its own error, and logged once for a connection.

    A connection whose SETUP wasn't accepted yet may send nothing but that SETUP, of `max_setup_bytes`.

    Attributes:
        max_request_bytes: One payload, whole or in fragments: `too_large`. Larger files go in chunks.
        max_connection_bytes: What one connection's payloads hold while they aren't whole: `server_full`.
        max_reassembly_bytes: The same for all connections together: `server_full`. It is those that stall, or hold far
            more than others, who are refused then.
        max_unstored_bytes: What has arrived of uploads in chunks, and isn't stored yet, of all connections together. A
            connection that has some isn't read from until there is less; nor is one that has an eighth of it.
        max_metadata_bytes: One payload's metadata: `too_large`. A larger frame without a payload, such as a keepalive,
            ends the connection.
        max_setup_bytes: A SETUP frame. A larger one ends the connection.
        max_store_bytes: Files and unfinished uploads of a memory store together: `storage_full`. Each counts with its
            content, its name, and 1,024 bytes.
        max_file_bytes: One file: `too_large`.
        max_streams: Requests under way on one connection, those that aren't whole yet included: `too_many_streams`.
        max_requests: Requests under way on all connections together: `server_full`. A connection may have 16 all the
            same.
        max_connections: Connections in all, TLS handshakes among them. For one more the connection without an accepted
            SETUP that has waited longest is closed; if there is none, the new one is rejected with `server_full`.
        max_connections_per_address: The same for one address; None for no limit, since a proxy is one address.
        setup_seconds: A connection without an accepted SETUP is closed after this; a TLS handshake, too.
        idle_seconds: A connection that was silent for this long, keepalives included, is closed. A SETUP may announce
            a longer lifetime, up to ten times this.
        payload_seconds: A payload that isn't whole and grows by less than 32 KiB in this time: `stalled`. So is a frame
            that doesn't arrive.
        blocked_seconds: A connection whose peer takes nothing of what waits for it is closed after this.
        max_errors_per_minute: Errors that one connection's requests may cause. One more ends it.
    """

    max_request_bytes: int = 208 * _MIB
    max_connection_bytes: int = 208 * _MIB
    max_reassembly_bytes: int = 416 * _MIB
    max_unstored_bytes: int = 256 * _MIB
    max_metadata_bytes: int = MAX_METADATA_BYTES
    max_setup_bytes: int = 16 * 1024
    max_store_bytes: int = 2048 * _MIB
    max_file_bytes: int = 1024 * 1024 * _MIB
    max_streams: int = 1024
    max_requests: int = 16 * 1024
    max_connections: int = 1024
    max_connections_per_address: int | None = None
    setup_seconds: float = 10.0
    idle_seconds: float = 60.0
    payload_seconds: float = 30.0
    blocked_seconds: float = 30.0
    max_errors_per_minute: int = 1000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value: float | None = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, not {value!r}")
