"""The documentation's checks, and the scripts that draw its pictures: `python -m tests.docs`."""
