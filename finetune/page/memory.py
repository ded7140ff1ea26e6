"""What is loaded and kept for the next time, checkpoints and recognizers alike, within one budget of memory.

What was longest unused goes first, and what is in use never goes: who finds no room waits for it. Codec and
vocoder, which every sound needs, are 0.13 GB beside it; data and training are processes of their own.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vallex.errors import CheckpointError

_WAIT_SEC = 0.5


@dataclass(kw_only=True)
class _Kept:
    thing: object
    name: str
    num_bytes: int
    num_users: int = 1


class Memory:
    """Things by keys, each with the bytes that it takes. A thread that uses one may not ask for another."""

    def __init__(self, budget_gb: float):
        self.budget_gb = budget_gb
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._loading = threading.Lock()
        self._changed = threading.Condition()

    @property
    def loaded(self) -> list[tuple[str, int]]:
        """Names and bytes of what is kept, the longest unused first."""
        with self._changed:
            return [(kept.name, kept.num_bytes) for kept in self._kept.values()]

    @contextmanager
    def lent(
        self,
        key: Hashable,
        name: str,
        num_bytes: int,
        load: Callable[[], tuple[object, int]],
        on_wait: Callable[[], None] = lambda: None,
    ) -> Iterator[object]:
        """What belongs to a key, to be used within; loaded if it is not there.

        num_bytes: how much it will take, as far as that is known before; `load` gives it, and what it takes
        on_wait: called now and then while there is no room; may raise to stop waiting
        errors: CheckpointError where it takes more than the whole budget; those of `load`
        """
        kept = self._take(key) or self._load(key, name, num_bytes, load, on_wait)
        try:
            yield kept.thing
        finally:
            with self._changed:
                kept.num_users -= 1
                self._changed.notify_all()

    def drop(self, is_old: Callable[[Hashable], bool]) -> None:
        """Lets go of what is not in use and of no use any more."""
        with self._changed:
            for key in [key for key, kept in self._kept.items() if is_old(key) and not kept.num_users]:
                del self._kept[key]
            self._changed.notify_all()

    def _take(self, key: Hashable) -> _Kept | None:
        with self._changed:
            kept = self._kept.get(key)
            if kept is not None:
                kept.num_users += 1
                self._kept.move_to_end(key)
            return kept

    def _load(
        self, key: Hashable, name: str, num_bytes: int, load: Callable, on_wait: Callable[[], None]
    ) -> _Kept:
        with self._loading:  # one at a time: two that load make room for neither
            if (kept := self._take(key)) is not None:
                return kept
            self._make_room(num_bytes, name, on_wait)
            thing, num_bytes = load()
            self._make_room(num_bytes, name, on_wait)
            with self._changed:
                kept = self._kept[key] = _Kept(thing=thing, name=name, num_bytes=num_bytes)
            return kept

    def _make_room(self, num_bytes: int, name: str, on_wait: Callable[[], None]) -> None:
        if num_bytes > self.budget_gb * 1e9:
            raise CheckpointError(
                f"{name}: takes {num_bytes / 1e9:.2f} GB; all that is loaded may take {self.budget_gb:g} GB. "
                "Start the page with a larger --memory-gb"
            )
        with self._changed:
            while not self._changed.wait_for(lambda: self._fits(num_bytes), _WAIT_SEC):
                on_wait()

    def _fits(self, num_bytes: int) -> bool:
        """Whether there is room, once what is not in use has gone as far as needed."""
        for key in list(self._kept):
            if self._num_bytes() + num_bytes <= self.budget_gb * 1e9:
                break
            if not self._kept[key].num_users:
                del self._kept[key]
        return self._num_bytes() + num_bytes <= self.budget_gb * 1e9

    def _num_bytes(self) -> int:
        return sum(kept.num_bytes for kept in self._kept.values())
