"""The fields of what the benchmarks write, with their types."""

ROW = {
    "work": str,
    "bits": int,
    "engine": str,
    "us": float,
    "us_low": float,
    "gmacs": float,
    "of_peak": float,
    "peak_gmacs": float,
    "gbs": float,
    "macs": int,
    "bytes": int,
    "copies": int,
    "rounds": int,
    "disturbed": int,
}
MACHINE = {
    "cpu": str,
    "isa": str,
    "threads": int,
    "int8_peak_gmacs": float,
    "fp32_peak_gmacs": float,
    "l2_gbs": float,
    "dram_gbs": float,
    "caches": dict,
    "versions": dict,
    "command": str,
}
MODEL_ROW = {
    "network": str,
    "plan": str,
    "engine": str,
    "threads": int,
    "ms": float,
    "size_mb": float,
    "rss_mb": float,
    "first_ms": float,
    "gmacs": float,
}
