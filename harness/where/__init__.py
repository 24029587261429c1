"""`peft-harness where A B`: the first module and operation at which two runs part by more than rounding explains.

1. sides: read A and B: a spec, a subject, a device, a launch, or a stack.
2. recorder: train a side, and record what each module gives forward and gets backward, beside the trace of the run.
3. timeline: put the recording and the trace of a run into the order in which things happened.
4. compare: find the first place that differs by more than the same place does in runs whose operations were changed in the
   last bit of what they give (recorder, too). What follows it is the path of the difference.
5. find: the steps 2 to 4 for two sides. command: on the screen and as JSON (report_schema.json). hint: one line of it for
   the message of a failed case.
"""
