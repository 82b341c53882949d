"""Connections that carry whole frames: the interface, and its implementation for TCP and TLS."""
