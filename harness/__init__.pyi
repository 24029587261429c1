from harness import checkpoints as checkpoints
from harness import crash as crash
from harness.checkpoints.safe import SafeCheckpoints as SafeCheckpoints
from harness.session.conformance import conformance as conformance
from harness.subjects.loop_subject import LoopSubject as LoopSubject
from harness.subjects.trainer_subject import TrainerSubject as TrainerSubject

__version__: str
