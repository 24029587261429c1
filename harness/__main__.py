"""The command `peft-harness`. A signal ends it in one sentence also while the modules of the command line are imported."""

from harness.processes import interrupts


def main() -> None:
    """Run the command line (`harness.cli.main`)."""
    with interrupts.ending_at(*interrupts.ALL):
        from harness import cli

        cli.main()


if __name__ == "__main__":
    main()
