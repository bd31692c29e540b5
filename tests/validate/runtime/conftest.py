"""Lets the tests of this folder, and processes that they spawn, import `stand_in` and `whole_run`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
