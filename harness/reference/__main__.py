import sys

from harness.paths import make_importable

make_importable()
from harness.subjects.reference import main  # noqa: E402

sys.exit(main())
