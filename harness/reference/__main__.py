"""`python -m harness.reference`: an entry script, as the command itself needs packages that stand above this one."""

from harness.real.reference_alone import main

raise SystemExit(main())
