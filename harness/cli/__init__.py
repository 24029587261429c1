"""The command line `peft-harness`. Imports neither torch nor pytest until a command needs it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import harness
from harness import ending
from harness.cli import (
    cache_command,
    compare_commands,
    directory_commands,
    judge_commands,
    look_commands,
    map_commands,
    measure_commands,
    report_commands,
)
from harness.cli.outputs import Command
from harness.processes import guard, interrupts

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Check that a stack of torch, transformers, peft, accelerate and bitsandbytes trains adapters as the contract "
    "says.\n\nExit codes of every command: 0 all clauses hold, 1 a clause fails, 2 wrong usage or could not run, "
    "3 undecided.",
)
app.add_typer(cache_command.app, name="cache")


def _print_versions(asked: bool) -> None:
    if asked:
        from harness.environment import PACKAGES
        from harness.environment import version as installed

        stack = ", ".join(f"{name} {installed(name) or 'not installed'}" for name in PACKAGES)
        print(f"peft-harness {harness.__version__} ({stack})")
        raise typer.Exit()


#: Commands that start no process and write no temporary file.
_ALONE = ("ask", "bounds", "cache", "clauses", "report", "trend")


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_versions, help="Show versions and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _ALONE:
        context.with_resource(guard.guarded())


#: Each command, in the order in which the help lists them, and whether it passes the arguments after -- on to pytest.
_COMMANDS = (
    (judge_commands.check, True),
    (judge_commands.soak, True),
    (judge_commands.judge, False),
    (judge_commands.repro, False),
    (judge_commands.sweep, False),
    (compare_commands.gate, False),
    (compare_commands.bisect, False),
    (compare_commands.where, False),
    (compare_commands.history, False),
    (map_commands.map_, False),
    (map_commands.bounds, False),
    (map_commands.propose, False),
    (map_commands.ask, False),
    (measure_commands.speed, False),
    (measure_commands.coverage, True),
    (measure_commands.mutants, False),
    (measure_commands.crash, False),
    (directory_commands.adapter, False),
    (directory_commands.checkpoint, False),
    (report_commands.report, False),
    (report_commands.trend, False),
    (look_commands.clauses, False),
    (look_commands.defects, False),
    (look_commands.train, False),
)
for _command, _passes_arguments in _COMMANDS:
    # `map` is a word of Python, so its function has a line below at the end.
    app.command(
        _command.__name__.rstrip("_"),
        cls=Command,
        context_settings={"allow_extra_args": True} if _passes_arguments else None,
    )(_command)


def main() -> None:
    """Run a command. An error of the user is one sentence on stderr and exit code 2, never a traceback."""
    lost = ending.open_streams()
    if lost:
        sys.exit(ending.say(lost))
    with interrupts.ending_at(*interrupts.ALL):
        code = _run()
    sys.exit(code)


def _run() -> int:
    try:
        # typer returns 130 for a KeyboardInterrupt, and None for a command that returns nothing.
        code = app(standalone_mode=False)
        return ending.ended_by(KeyboardInterrupt()) if code == ending.INTERRUPTED else ending.ended(code)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return ending.ended_by(error)
        raise  # a shell asked for completion
    except BaseException as error:
        return _wrong_usage(error) if isinstance(error, _CLICK_ERROR) else ending.ended_by(error)


#: The base class of the parser's errors. Some releases of typer come with a click of their own.
_CLICK_ERROR = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _wrong_usage(error: Any) -> int:
    """Print how the command is used and what is wrong. Return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return ending.COULD_NOT_RUN
    context = getattr(error, "ctx", None)
    if context is not None:
        print(f"{context.get_usage()}\nTry '{context.command_path} -h' for help.\n", file=sys.stderr)
    return ending.say(error.format_message())
