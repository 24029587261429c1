import sys

from harness.subjects.reference import main

sys.exit(main())
