from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "CKPT",
    "content of a checkpoint",
    (),
)
