"""What `server_stats` emits."""

from shared.protocol.stats import RouteStats, ServerStats, TransferStats

__all__ = ["RouteStats", "ServerStats", "TransferStats"]
