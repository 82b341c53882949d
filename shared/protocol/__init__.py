"""What both ends say to each other, without I/O: metadata, messages, digests, and the flow of one transfer."""
