"""Compression: statistics, redundancy elimination, allocation, reconstruction, fine-tuning."""
