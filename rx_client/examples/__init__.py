"""Example pipelines, each a module to read and copy: `python -m rx_client.examples` lists them, `__main__` runs them.

They may import `server`, to run one in this process; the client itself doesn't.
"""

from .._siblings import check_sibling

check_sibling("server")
