"""What the automatic choice of an implementation took; shown by MMJAX_DEBUG=1."""

import functools
import logging


@functools.cache
def say(message: str) -> None:
    """Logs each different message once."""
    logging.getLogger("mmjax.ops").debug(message)
