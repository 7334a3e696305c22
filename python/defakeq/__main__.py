"""``python -m defakeq`` is the command line."""

from defakeq.cli import main

main()
