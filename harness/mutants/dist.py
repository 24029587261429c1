"""dist"""

MUTANTS: tuple = ()
