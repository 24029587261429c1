from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOOP",
    "optimizer, schedule, steps, TrainOutput",
    (),
)
