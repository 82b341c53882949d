"""RSocket requests as cold observables."""
