"""Releases on a device: staged beside the running one, tried, committed, or gone back from."""
