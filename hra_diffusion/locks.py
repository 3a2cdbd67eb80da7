"""One re-entrant lock per object, which the object itself does not hold: it can still be copied and pickled."""

import threading
import weakref
from contextlib import AbstractContextManager

_locks: "weakref.WeakKeyDictionary[object, AbstractContextManager]" = weakref.WeakKeyDictionary()
_adding = threading.Lock()


def lock_of(owner: object) -> AbstractContextManager:
    """Return the lock of a pipeline or a model: hold it to change the object, or while the object must not change.

    The thread that holds it may acquire it again. A copy of the object has its own lock.
    """
    with _adding:
        return _locks.setdefault(owner, threading.RLock())
