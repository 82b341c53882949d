"""Connections of the server: accepting them, and answering their requests."""
