"""Files on a disk, and threads that move their bytes to and from a socket."""
