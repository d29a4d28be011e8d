"""The modules that stand beside a tool are imported as the tool does: from its own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
