"""Batches without state: batch number i is a pure function of (seed, i), on any number of processes.

    source --shuffled--> indices [B] of batch i --make--> batch (NumPy) --prefetch--> batch on the devices

B rows of the global batch. Nothing has to be saved to resume but the step. Each process builds only its own rows, but
every random number is drawn for the whole batch first, so the rows don't depend on how many processes there are.
"""

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Batch = dict[str, np.ndarray]  # name -> array, batch axis first
ALL = slice(None)


class Pairs(NamedTuple):
    """The pictures and captions that an eval reads; row n of each belongs together."""

    images: np.ndarray  # [N H W 3] uint8
    captions: list[str]  # N sentences
    labels: np.ndarray  # [N] int32: rows with the same label are right answers to each other
    names: tuple[str, ...]  # label -> name


class Data(Protocol):
    """What an experiment trains on: a frozen dataclass, so that `--set data.field=value` reaches its fields."""

    def batches(self, batch_size: int, seed: int, rows: slice = ALL) -> "Batches":
        """Rows `rows` of endless global batches; for CLIP `images` uint8 [B H W 3], `input_ids` int32 [B T],
        `attention_mask` bool [B T] and `label` int32 [B]."""

    def pairs(self, split: str) -> Pairs:
        """All of a split, in a fixed order and without augmentation."""

    def tokenize(self, texts: Sequence[str]) -> Batch:
        """`input_ids` int32 [B T] and `attention_mask` bool [B T]."""


def shuffled(length: int, batch_size: int, seed: int) -> Sequence[np.ndarray]:
    """Index batches [B] int64 over `range(length)`, endless, random access, in a new order each epoch.

    A batch may span two epochs; over any `length` consecutive indices of one epoch each index comes once.
    """
    import grain  # 1.5 s, and a model alone doesn't need it

    if length < 1:
        raise ValueError("there is nothing to shuffle: the training split holds 0 examples")
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat().batch(batch_size)


class Batches:
    """`make(indices [B], rng, rows) -> Batch` over shuffled indices.

    `indices` and `rng` are those of the global batch. `make` draws from `rng` for all of it and then keeps `rows`.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rows: slice, make: Callable[..., Batch]):
        self._indices = shuffled(length, batch_size, seed)
        self._seed, self._rows, self._make = seed, rows, make

    def __getitem__(self, step: int) -> Batch:
        # The third number sets this stream apart from others that are seeded by the same (seed, step).
        rng = np.random.default_rng((self._seed, step, 0xDA7A))
        return self._make(np.asarray(self._indices[step]), rng, self._rows)


def spec(data: Data, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a global batch, read off a batch of one row."""
    one = data.batches(1, seed=0)[0]
    return {name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for name, x in one.items()}


class Prefetched:
    """Iterates over placed batches that a thread builds ahead; see `prefetch`."""

    def __init__(self, batches: Any, start: int, place: Callable[[Batch], Any], depth: int):
        self.wait_seconds = 0.0  # time that the consumer stood still, waiting for data
        self._batches, self._place, self._next = batches, place, start
        # One thread: batches cost less than steps, and NumPy holds the lock for part of the time anyway.
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="mmjax-data")
        self._ahead: deque[concurrent.futures.Future] = deque()
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        self._ahead.append(self._thread.submit(self._build, self._next))
        self._next += 1

    def _build(self, step: int) -> Any:
        return self._place(self._batches[step])

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        started = time.perf_counter()
        try:
            batch = self._ahead.popleft().result()  # an error of the thread is raised here, with its own traceback
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        self._submit()
        return batch

    def close(self) -> None:
        """Stops after the batch in progress; safe to call twice."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def prefetch(batches: Any, start: int, place: Callable[[Batch], Any], depth: int = 2) -> Prefetched:
    """Placed batches from number `start` on, built `depth` ahead in a thread; use it in a `with` block.

    `place` puts a batch on the devices. `.wait_seconds` tells how long the consumer
    has waited for data so far. An error while building batch i is raised when batch i is asked for.
    """
    if depth < 1:
        raise ValueError(f"prefetch depth must be at least 1, got {depth}")
    return Prefetched(batches, start, place, depth)
