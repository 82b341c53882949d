"""Example pipelines: `python -m rx_client.examples` lists them. Each is a module to read; `__main__` runs them.

They may import `server`, to have one to talk to; the client itself doesn't.
"""
