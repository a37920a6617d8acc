"""``python -m persres``."""

import sys

from persres.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
