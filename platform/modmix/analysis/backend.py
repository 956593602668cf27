"""Imports matplotlib, whatever backend the environment asks for.

A command that is started from a notebook inherits MPLBACKEND, which names a backend that may not be
installed here: then already the import fails. Figures need none, they have canvases of their own
(`style.new_figure`). Imported before anything of matplotlib.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

_wanted = os.environ.pop("MPLBACKEND", None)
# It says there that its cache has no permanent place, and what is wrong in a matplotlibrc.
_log = logging.getLogger("matplotlib")
_level = _log.level
_log.setLevel(logging.ERROR)
try:
    import matplotlib as mpl
    import matplotlib.font_manager
finally:
    _log.setLevel(_level)
    if _wanted is not None:
        os.environ["MPLBACKEND"] = _wanted
if _wanted:
    with suppress(ValueError):  # the program that uses modmix may draw windows of its own
        mpl.rcParams["backend"] = _wanted
