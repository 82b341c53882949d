"""What this project uses of rsocket 0.4.20, which has no types of its own.

Where its few annotations are wrong, what is true at runtime stands here, with a comment. Private members are those that
the project reads or overrides; tests/test_canaries.py notices when one of them changes.
"""
