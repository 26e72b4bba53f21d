"""Where programs run: JAX' settings before anything is compiled, and the device in words."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import jax

from rlsuite.errors import UserError
from rlsuite.training import memory, plan


def prepare_jax(cores: int | None = None) -> None:
    """Keep compiled programs in a user folder, so that the same sweep started again does not compile again, and show
    every processor core, or as many as are given, as a device, so that runs train side by side where there is no
    accelerator.

    JAX_COMPILATION_CACHE_DIR chooses another folder, JAX_NUM_CPU_DEVICES another number. Where the folder cannot be
    written, nothing is kept, and one line says so in place of JAX' warnings.
    """
    folder = jax.config.values["jax_compilation_cache_dir"] or str(plan.cache_folder() / "jax")
    if "://" not in folder:  # JAX keeps them in a bucket, too
        folder = os.path.expanduser(folder)
        try:
            check_writable(Path(folder), "cache", "JAX_COMPILATION_CACHE_DIR or XDG_CACHE_HOME")
        except UserError as error:
            jax.config.update("jax_enable_compilation_cache", False)
            print(f"rlsuite: compiled programs are not kept; {error}", flush=True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    already = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not already and "JAX_NUM_CPU_DEVICES" not in os.environ:
        # Refused once JAX has started, as in a notebook; then there is as much as there is.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", cores or memory.num_cores())


def describe_device() -> str:
    """The accelerators or the processor, in words."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def check_writable(folder: Path, of: str, option: str) -> None:
    """Make this folder, `of` what, if it is not there. Raise UserError, naming the option, unless it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{of} folder '{folder}' cannot be written ({error.strerror}); choose another with {option}"
        ) from error
