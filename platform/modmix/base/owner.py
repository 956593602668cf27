"""Who a study belongs to: names of the form ``owner/name``.

Owners keep studies of the same name apart in a shared ledger, and keep people from changing each
other's by mistake. They are not a protection: access rights are the database's.
"""

from __future__ import annotations

import getpass
import os
import re

from modmix.base.errors import InputError
from modmix.base.home import NAME_RULE, is_name


def current_owner() -> str:
    """MODMIX_OWNER, else the user's login name with other characters replaced by hyphens.

    Raises:
        InputError: MODMIX_OWNER is no valid name.
    """
    given = os.environ.get("MODMIX_OWNER", "")
    if given:
        if not is_name(given):
            raise InputError(f"MODMIX_OWNER must be {NAME_RULE}, got {given!r}")
        return given
    try:
        login = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container with a user id that has no name
        login = f"user-{os.getuid()}"
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "-", login).lstrip("_.-")[:100]
    return cleaned or "user"


def owner_and_name(study: str) -> tuple[str, str]:
    """Owner and plain name of a study; the owner is "" in a name without one.

    Example:
        >>> owner_and_name("alice/curve"), owner_and_name("curve")
        (('alice', 'curve'), ('', 'curve'))
    """
    owner, _, name = study.rpartition("/")
    return owner, name
