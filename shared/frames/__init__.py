"""RSocket frames: their bytes, the payloads that come in several of them, and those that wait to be sent."""
