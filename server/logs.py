"""The log of a server process, as lines for a person or as JSON."""

import json
import logging
from datetime import UTC, datetime

__all__ = ["log_to_stderr"]


def log_to_stderr(level: str, *, as_json: bool) -> None:
    """Logs to standard error from here on.

    Args:
        level: The least level, such as `INFO`.
        as_json: Whether each record is one line with a JSON object: `time` (ISO 8601, UTC), `level`, `logger`,
            `message`, and `traceback` if there is one.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if as_json else logging.Formatter(_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)
