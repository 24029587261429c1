from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "API",
    "adapter injection and detection",
    (),
)
