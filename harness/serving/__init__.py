"""`peft-harness adapter DIR`: is this adapter whole, which servers can take it, and how much of it is left in which dtype?

- the section `file`: `harness.checkpoints` reads adapter_config.json and the tensors' file, and judges them.
- servers, rules: the section `servers`, and the rules of each server with the file of its source that they were read in.
- effect: the section `effect`.
- command: the three sections, on the screen and as JSON (adapter_schema.json).
"""
