"""Mutants: faults put into the installed upstream on purpose. What the suites are worth is which of them they catch.

`peft-harness mutants` runs the cells that could see each one, and prints which clauses killed it. One alone:

    pytest suites/ --preload harness.mutants.preload.alpha-for-alpha-over-r

Your own: a Python file with a list `MUTANTS`, for `peft-harness mutants --module FILE`.

    from harness.mutants import Mutant, replace

    def half(original, layer, *args, **options):
        return 0.5 * original(layer, *args, **options)

    MUTANTS = [
        Mutant(
            "half-an-adapter",
            "A layer's output is half of what it must be.",
            replace("peft.tuners.lora.layer:Linear", "forward", half),
            cells=("API-04/alpha-*", "LOSS-01/ragged"),
        )
    ]
"""

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import nothing, replace

__all__ = ["Mutant", "nothing", "replace"]
