"""`peft-harness train`: the path on real input, a pretrained model and text, with the checks on what it left behind."""
