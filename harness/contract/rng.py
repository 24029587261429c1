from harness.contract.clause import Chapter, Clause

CHAPTER = Chapter(
    "RNG",
    "random numbers and data order",
    (),
)
