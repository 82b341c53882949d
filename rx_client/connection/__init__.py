"""The client's connection: how it is made, watched, and made again."""
