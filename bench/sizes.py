"""Size of `.dfq` files over the arithmetic minimum for their plans.

    python bench/sizes.py FILE...

The minimum counts every code with its bits (no row padded to a byte), and every scale, zero point,
bias, index, table and constant with its bytes in a file: no header, no names, no description.
Each file is written again in memory, so that an older one is measured as it would be stored now.
"""

from __future__ import annotations

import sys
from pathlib import Path

from defakeq_kernels import dfq
from defakeq_kernels.packed import HALF_BITS


def measure(path: Path) -> tuple[int, float, int]:
    """(bytes of the file, arithmetic minimum in bytes, bytes of the header)."""
    tensors, network = dfq.read(path)
    padding = 0.0
    for name in network["layers"]:
        weight = dfq.layer(tensors, network, name)
        tensors.update(weight.to_tensors(name))
        for segment in weight.segments:
            if segment.bits != HALF_BITS:
                padding += (
                    segment.codes.nbytes - segment.count * weight.reduction * segment.bits / 8
                )
    data = dfq.dumps(tensors, network)
    header = 8 + int.from_bytes(data[:8], "little")
    return len(data), len(data) - header - padding, header


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        size, least, header = measure(Path(argument))
        over = 100 * (size / least - 1)
        print(f"{argument}: {size} bytes, header {header}, minimum {least:.0f}, {over:.2f} % over")
