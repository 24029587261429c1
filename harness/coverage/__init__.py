"""`peft-harness coverage`: which branches of upstream that are about adapters the suites reach, and which not."""
