"""``python -m event_triggers``; see :mod:`event_triggers.cli`."""

from __future__ import annotations

import sys

from event_triggers.cli import main

if __name__ == "__main__":
    sys.exit(main())
