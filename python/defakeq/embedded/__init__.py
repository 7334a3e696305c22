"""The embedded detector: a small face-forgery classifier that the package carries."""
