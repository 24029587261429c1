from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "RES",
    "resume",
    (),
)
