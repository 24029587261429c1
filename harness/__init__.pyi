from harness import checkpoints as checkpoints
from harness import crash as crash
from harness.checkpoints.safe import SafeCheckpoints as SafeCheckpoints
from harness.session.conformance import conformance as conformance
from harness.subjects.loop_subject import LoopSubject as LoopSubject
from harness.subjects.trainer_subject import TrainerSubject as TrainerSubject
from harness.watch.acting import Violation as Violation
from harness.watch.callback import Watch as Watch
from harness.watch.own_loop import WatchLoop as WatchLoop

__version__: str
