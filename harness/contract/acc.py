from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "ACC",
    "gradient accumulation",
    (),
)
