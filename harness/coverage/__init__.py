"""`peft-harness coverage`: which of upstream's branches about adapters the suites reach, and which they do not."""
