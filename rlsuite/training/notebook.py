"""A line of a notebook's cell that is shown in place, with a bar."""

from __future__ import annotations

import html
import sys
import time

SECONDS = 0.2
"""Between two updates of a line: each is a message to the browser."""


def running() -> bool:
    """Whether this process is the kernel of a notebook."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    if kernel is None:
        return False
    from IPython import get_ipython

    return isinstance(get_ipython(), kernel.ZMQInteractiveShell)


class Line:
    """A line below what the cell shows so far. IPython is there, see `running`."""

    def __init__(self, text: str) -> None:
        from IPython.display import DisplayHandle

        self._handle = DisplayHandle()
        self._handle.display(_data(text, None), raw=True)
        self._shown = time.perf_counter()

    def show(self, text: str, share: float) -> None:
        """Show the text next to a bar, in place of what the line shows, where that is not too early."""
        now = time.perf_counter()
        if share >= 1 or now - self._shown >= SECONDS:
            self._shown = now
            self._handle.update(_data(text, share), raw=True)

    def clear(self) -> None:
        """Show nothing. The line itself stays, as high as nothing is."""
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _data(text: str, share: float | None) -> dict[str, str]:
    """The text, and a page's bar before it: as full as the `share`, and moving without one."""
    value = "" if share is None else f' value="{share:.4f}"'
    bar = f'<progress max="1"{value} style="width: 16em; vertical-align: middle"></progress>'
    line = f'<span style="font-family: monospace; white-space: pre">{html.escape(text)}</span>'
    return {"text/plain": text, "text/html": f"{bar} {line}"}
