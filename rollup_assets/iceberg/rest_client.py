"""Adds timeouts to PyIceberg's REST catalog, which has none: a server that hangs would hang a run for ever.

Imported only where a REST catalog is opened, since it imports PyIceberg's client.
"""

from __future__ import annotations

import functools

from pyiceberg.catalog.rest import RestCatalog
from requests import Session

from rollup_assets.iceberg.rest import CONNECT_SECONDS

READ_SECONDS = 25.0
"""If a commit's answer does not come in time, the commit is looked for in the table before it is tried again."""


class TimedRestCatalog(RestCatalog):
    """Each request ends within the timeouts."""

    def _create_session(self) -> Session:
        # A private method, the only place where PyIceberg makes sessions; a test with a silent server notices if that changes.
        session = super()._create_session()
        session.request = functools.partial(session.request, timeout=(CONNECT_SECONDS, READ_SECONDS))  # type: ignore[method-assign]
        return session
