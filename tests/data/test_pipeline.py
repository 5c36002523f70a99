"""The pipeline holds no state: batches depend on seed and number only, whoever asks, in whatever order."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import pipeline


@dataclasses.dataclass(frozen=True)
class Toy:
    length: int = 10

    def batches(self, batch_size, seed, rows=pipeline.ALL):
        def make(indices, rng, rows):
            noise = rng.random((len(indices), 3), dtype=np.float32)
            return {"index": indices[rows].astype(np.int32), "noise": noise[rows]}

        return pipeline.Batches(self.length, batch_size, seed, rows, make)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def test_a_batch_is_a_function_of_seed_and_number():
    forwards = [Toy().batches(4, seed=3)[i] for i in range(6)]
    again = Toy().batches(4, seed=3)
    for i in (5, 0, 3):
        assert_equal(again[i], forwards[i])
    other = [Toy().batches(4, seed=4)[i] for i in range(6)]
    for name in ("index", "noise"):
        assert not np.array_equal(np.stack([b[name] for b in other]), np.stack([b[name] for b in forwards]))
    assert not np.array_equal(forwards[0]["noise"], forwards[1]["noise"])


@settings(max_examples=20, deadline=None)
@given(processes=st.sampled_from([1, 2, 4, 8]), step=st.integers(0, 10**6), seed=st.integers(0, 2**31))
def test_rows_are_the_same_on_any_number_of_processes(processes, step, seed):
    whole = Toy().batches(8, seed)[step]
    per = 8 // processes
    parts = [Toy().batches(8, seed, slice(p * per, (p + 1) * per))[step] for p in range(processes)]
    assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)


def test_every_epoch_shows_all_examples_once_in_a_new_order():
    batches = Toy(length=12).batches(4, seed=0)
    epochs = [np.concatenate([batches[3 * e + i]["index"] for i in range(3)]) for e in range(5)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_batches_run_across_the_end_of_an_epoch():
    batches = Toy(length=10).batches(4, seed=0)
    stream = np.concatenate([batches[i]["index"] for i in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))


def test_a_batch_may_be_larger_than_the_set():
    assert Toy(length=3).batches(8, seed=0)[7]["index"].shape == (8,)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="0 examples"):
        Toy(length=0).batches(4, seed=0)


def test_spec_is_the_shape_of_a_batch():
    batch = Toy().batches(64, seed=0)[0]
    spec = pipeline.spec(Toy(), 64)
    assert {k: (v.shape, v.dtype) for k, v in spec.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}


def test_prefetch_hands_out_the_batches_in_order_from_the_start():
    batches = Toy().batches(4, seed=0)
    with pipeline.prefetch(batches, 5, place=lambda batch: batch, depth=3) as ahead:
        for step in range(5, 12):
            assert_equal(next(ahead), batches[step])


class Recorder:
    def __init__(self, fails_at=None, seconds=0.0):
        self.asked, self.fails_at, self.seconds = [], fails_at, seconds

    def __getitem__(self, step):
        self.asked.append(step)
        time.sleep(self.seconds)
        if step == self.fails_at:
            raise ValueError(f"image 7 of batch {step} is broken")
        return {"step": np.full(1, step)}


def test_prefetch_builds_ahead_but_not_further_than_its_depth():
    recorder = Recorder()
    with pipeline.prefetch(recorder, 0, lambda batch: batch, depth=2) as ahead:
        next(ahead)
        patience = time.monotonic() + 10
        while len(recorder.asked) < 3 and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1)
        assert recorder.asked == [0, 1, 2]


def test_an_error_in_the_thread_reaches_the_consumer_at_its_batch():
    with pipeline.prefetch(Recorder(fails_at=2), 0, lambda batch: batch, depth=2) as ahead:
        assert next(ahead)["step"] == 0
        assert next(ahead)["step"] == 1
        with pytest.raises(ValueError, match="image 7 of batch 2"):
            next(ahead)


def test_an_error_while_placing_reaches_the_consumer():
    def place(batch):
        raise RuntimeError("device is full")

    with pipeline.prefetch(Recorder(), 0, place) as ahead, pytest.raises(RuntimeError, match="device is full"):
        next(ahead)


def test_closing_leaves_no_thread_and_builds_no_more():
    recorder = Recorder(seconds=0.2)
    with pipeline.prefetch(recorder, 0, lambda batch: batch, depth=4) as ahead:
        next(ahead)
    ahead.close()
    asked = list(recorder.asked)
    assert not [t for t in threading.enumerate() if t.name.startswith("mmjax-data")]
    time.sleep(0.3)
    assert recorder.asked == asked
    assert len(asked) <= 3


def test_waiting_for_slow_data_is_counted():
    with pipeline.prefetch(Recorder(seconds=0.1), 0, lambda batch: batch, depth=1) as ahead:
        next(ahead)
        next(ahead)
        slow = ahead.wait_seconds
        time.sleep(0.5)  # now the data is ready before it is asked for
        next(ahead)
        assert ahead.wait_seconds - slow < 0.08
    assert 0.12 < slow < 5


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth"):
        pipeline.prefetch(Recorder(), 0, lambda batch: batch, depth=0)
