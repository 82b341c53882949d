"""Files in a folder of a disk."""
