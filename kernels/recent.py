"""A cache of what was asked for last."""

from __future__ import annotations

import collections
import threading
from typing import Any

from gpurnn import _fork


class Recent:
    """The values that were asked for last, by their keys; threads share it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = _fork.Lock(threading.RLock)

    def get(self, key: Any) -> Any:
        """The value of ``key``, or None."""
        with self._lock.current:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Any, value: Any) -> None:
        """Keep a value until others have been asked for since."""
        with self._lock.current:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock.current:
            self._values.clear()
