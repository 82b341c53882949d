from collections.abc import Awaitable as Awaitable

ByteTypes = bytes | bytearray
