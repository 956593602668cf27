"""Imports matplotlib, whatever backend the environment asks for.

A command started from a notebook inherits MPLBACKEND. If it names a backend that is not installed
here, importing matplotlib fails. Figures need no backend: they have their own canvases
(`style.new_figure`). Import this module before anything of matplotlib.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

_wanted = os.environ.pop("MPLBACKEND", None)
# Hides warnings about a temporary cache folder and about mistakes in a matplotlibrc.
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
    with suppress(ValueError):  # the program that uses modmix may open its own windows
        mpl.rcParams["backend"] = _wanted
