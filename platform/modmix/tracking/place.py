"""Whether files that MLflow knows are where they were: a results folder may be moved or copied.

MLflow notes the whole path of an experiment's files and of a model, and cannot change it. So where
the folder has another path now, the study gets another experiment, rebuilt from the ledger, and
its model another version; what was there before keeps what people wrote to it.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from modmix.base.home import Home, sqlite_path


def local_folder(uri: str) -> Path | None:
    """The folder that MLflow means by the URI of artifacts, or None: they are on a server."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    return Path(url2pathname(parts.path))


def is_elsewhere(uri: str, home: Home, tracking_uri: str) -> bool:
    """Whether files are not where this results folder keeps its artifacts.

    Args:
        uri: of the files, as an experiment or a model's version has it.
        tracking_uri: of an MLflow that is a database used directly. Only the one in the results
            folder says that files elsewhere are of a former place; beside another one it takes
            that they are gone.
    """
    folder = local_folder(uri)
    if folder is None or folder.resolve().is_relative_to(home.artifacts.resolve()):
        return False
    database = sqlite_path(tracking_uri)
    own = database is not None and database.resolve().parent == home.path.resolve()
    return own or not folder.exists()
