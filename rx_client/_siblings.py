"""Notices that something else would be imported in place of a package of rxfiles, before that fails with a riddle.

`shared` and `server` are names that people give to their own files, and a script's folder comes first. `rx_client` and
`server` each have this file, since neither knows where the other one is, and `shared` is what may be missing.
"""

import importlib.util
import os
import sys

__all__ = ["check_sibling"]


def check_sibling(name: str) -> None:
    """Imports nothing.

    Raises:
        ImportError: `import` would find another package or module than the one beside this package.
    """
    ours = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), name)
    try:
        spec = importlib.util.find_spec(name)
        found = None if spec is None else spec.origin
    except ValueError:  # it is imported already, and not by the usual way
        found = getattr(sys.modules[name], "__file__", None)
    if found is None:
        raise ImportError(f"rxfiles is incomplete: there is no package {ours}; install it again", name=name)
    if os.path.dirname(os.path.realpath(found)) != ours:
        raise ImportError(
            f"{found} would be imported in place of {ours}, which rxfiles needs: give it another name, or take its "
            "folder from the module search path (that of the script comes first)",
            name=name,
            path=found,
        )


check_sibling("shared")
