"""ds"""

MUTANTS: tuple = ()
