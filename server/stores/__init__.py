"""Where files live: the interface of a store, and one module or package for each."""
