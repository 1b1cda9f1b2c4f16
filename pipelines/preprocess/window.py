"""What bounds the memory of decoding ahead."""

from __future__ import annotations

import threading


class Room:
    """Bytes that threads take and give back. Somebody who holds nothing always gets what he needs in the end, however
    much that is, provided that the others go on without more.
    """

    def __init__(self, size: int) -> None:
        self._size, self._used, self._changed = size, 0, threading.Condition()

    def take(self, count: int, wait: bool, held: int = 0) -> bool:
        """Take `count` bytes; whether they were had. wait: until there are so many, or nobody else holds any.

        held: bytes that the caller holds already. With some, he gets no more than there is room for.
        """
        with self._changed:
            while self._used and self._used + count > self._size:
                if not wait or (held and self._used == held):
                    return False
                self._changed.wait()
            self._used += count
            return True

    def give(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()
