"""A coverage-guided fuzzer for the parsers of a peer's bytes: `make fuzz`, or `python -m tests.fuzz --help`."""
