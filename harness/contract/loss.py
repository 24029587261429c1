from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "LOSS",
    "the loss",
    (),
)
