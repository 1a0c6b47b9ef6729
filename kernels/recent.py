"""A cache of recently used values."""

from __future__ import annotations

import collections
import threading
from typing import Any

from gpurnn import _fork


class Recent:
    """The most recently used values, by key. Threads may share it."""

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
        """Keep a value until enough others have been used since."""
        with self._lock.current:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Forget all values."""
        with self._lock.current:
            self._values.clear()
