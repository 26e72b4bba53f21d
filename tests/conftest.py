"""Test settings. They are environment variables, set before the first `import jax` and inherited by subprocesses.

The platform is left to JAX, so that the same tests run on an accelerator where its plugin is installed; JAX_PLATFORMS
chooses another.
"""

from __future__ import annotations

import os
from pathlib import Path

# Compiling is most of the time that these tests take. The zero and the minus one keep even the smallest programs.
CACHE_HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE_HOME / "rlsuite" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Devices that stand for several accelerators. What is compiled for one of them only is no slower for it.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
