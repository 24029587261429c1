"""`python -m harness.cli`, the same as `peft-harness`."""

from harness.cli import main

main()
