"""fsdp"""

MUTANTS: tuple = ()
