"""Uploads and downloads: their attempts, and what they read from and write to."""
