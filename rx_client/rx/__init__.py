"""Observables that belong to an event loop."""
