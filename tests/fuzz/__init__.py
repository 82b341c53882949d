"""A coverage-guided fuzzer for whatever reads a stranger's bytes: `make fuzz`, or `python -m tests.fuzz --help`."""
