"""Makes the sampler of these tests importable, here and in the processes that they fork."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
