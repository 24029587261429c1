"""The command `peft-harness`. A signal ends it in one sentence also while the modules of the command line are imported."""

import sys

from harness.processes import interrupts


def main() -> None:
    """Run the command line (`harness.cli.main`)."""
    with interrupts.ending_at(*interrupts.ALL):
        try:
            from harness import cli
        except ImportError as error:
            print(f"peft-harness: {error.name} cannot be imported ({error}); install it again", file=sys.stderr)
            sys.exit(2)
        cli.main()


if __name__ == "__main__":
    main()
