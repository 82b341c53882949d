"""What a server can be asked."""
