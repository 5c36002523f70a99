"""`--set a.b=c` and experiments from files: what works, and what a typo is told."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest
from flax import linen as nn

from mmjax.train import overrides
from mmjax.train.optim import AdamW, Partitioned


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int = 8
    rate: float = 1
    name: str = "small"
    wide: bool = False
    shape: tuple[int, ...] = (1, 2)
    limit: float | None = None
    dtype: Any = jnp.float32
    free: Any = None
    fn: Any = max

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


class Net(nn.Module):
    config: Sizes

    def __call__(self, x):
        return x


class Pair(NamedTuple):
    one: Sizes
    two: int = 2


@dataclasses.dataclass(frozen=True)
class Root:
    model: nn.Module
    pair: Pair
    parts: tuple
    optimizer: Any
    table: dict


ROOT = Root(Net(Sizes()), Pair(Sizes()), (Sizes(), Sizes()), Partitioned({"^a/": AdamW(0.1)}), {"k": Sizes()})


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("model.config.width=16", lambda x: x.model.config.width, 16),
        ("model.config.width=0x10", lambda x: x.model.config.width, 16),
        ("model.config.rate=3", lambda x: x.model.config.rate, 3.0),
        ("model.config.rate=1e-3", lambda x: x.model.config.rate, 1e-3),
        ("model.config.name=1", lambda x: x.model.config.name, "1"),
        ("model.config.name='a b'", lambda x: x.model.config.name, "a b"),
        ("model.config.name=a=b", lambda x: x.model.config.name, "a=b"),
        ("model.config.wide=true", lambda x: x.model.config.wide, True),
        ("model.config.wide=False", lambda x: x.model.config.wide, False),
        ("model.config.shape=3,4,5", lambda x: x.model.config.shape, (3, 4, 5)),
        ("model.config.shape=[7]", lambda x: x.model.config.shape, (7,)),
        ("model.config.limit=2", lambda x: x.model.config.limit, 2.0),
        ("model.config.limit=None", lambda x: x.model.config.limit, None),
        ("model.config.dtype=bfloat16", lambda x: x.model.config.dtype, jnp.bfloat16),
        ("model.config.free=[1, 'x']", lambda x: x.model.config.free, [1, "x"]),
        ("pair.two=5", lambda x: x.pair.two, 5),
        ("pair.one.width=9", lambda x: x.pair.one.width, 9),
        ("parts.1.width=9", lambda x: [one.width for one in x.parts], [8, 9]),
        ("optimizer.parts.^a/.peak=0.2", lambda x: x.optimizer.parts["^a/"].peak, 0.2),
        ("optimizer.parts.^a/.clip=1", lambda x: x.optimizer.parts["^a/"].clip, 1.0),
        ("table.k.width=3", lambda x: x.table["k"].width, 3),
    ],
)
def test_a_field_is_set_and_nothing_else(override, read, value):
    changed = overrides.apply(ROOT, [override])
    found = read(changed)
    assert found == value
    assert type(found) is type(value)
    assert read(ROOT) != value or override.endswith(("None", "False"))  # the original is as it was
    name = override.split("=")[0]
    back = overrides.apply(changed, [f"{name}={read(ROOT)!r}"]) if isinstance(read(ROOT), int | float | str) else ROOT
    assert back == ROOT


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.config.widht=16", "model.config has no field 'widht'; did you mean width"),
        ("modle.config.width=16", "the experiment has no field 'modle'; did you mean model"),
        ("model.config.width.x=1", "model.config.width is 8, which has no fields"),
        ("parts.2.width=1", "parts has no field '2'; its fields: 0, 1"),
        ("model.parent=1", "model has no field 'parent'"),
        ("model.config.width=big", "the field holds 8 and takes int"),
        ("model.config.width=1.5", "the field holds 8 and takes int"),
        ("model.config.width=None", "the field holds 8 and takes int"),
        ("model.config.wide=1", "the field holds False and takes bool"),
        ("model.config.shape=3", r"the field holds \(1, 2\) and takes tuple"),
        ("model.config.limit=low", "the field holds None and takes float or None"),
        ("model.config.dtype=bfloat17", "the field holds _ScalarMeta"),
        ("model.config=1", "the field holds Sizes; what can be set: model.config.width, model.config.rate"),
        ("model.config.fn=min", "what can be set: nothing: write it in the file"),
        ("model.config.width", "--set needs FIELD=VALUE"),
        ("=3", "--set needs FIELD=VALUE"),
        ("model.config.width=0", "width must be positive, got 0"),  # what the class itself checks
    ],
)
def test_a_mistake_is_told_what_is_there(override, message):
    with pytest.raises(ValueError, match=message):
        overrides.apply(ROOT, [override])


def test_the_last_of_two_wins():
    assert overrides.apply(ROOT, ["pair.two=5", "pair.two=6"]).pair.two == 6


FILE = '''"""A toy."""

import toys


def experiment(size):
    if size == "huge":
        return 3
    return toys.experiment(log_every=5, **{"tiny": {"steps": 2}, "small": {}, "wide": {}}[size])
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "toy_points.py"
    path.write_text(FILE)
    return path


def test_an_experiment_is_made_from_its_file(file):
    small = overrides.load_experiment(file, "small", ["optimizer.peak=0.5", "mesh.fsdp=2", "task.model.width=4"])
    assert (small.optimizer.peak, small.mesh.fsdp, small.task.model.width, small.log_every) == (0.5, 2, 4, 5)
    assert overrides.load_experiment(file, "tiny").log_every == 1
    assert overrides.load_experiment(file, "tiny", ["log_every=3"]).log_every == 3


def test_a_wrong_file_or_size_is_told_what_there_is(file):
    with pytest.raises(FileNotFoundError, match="no experiment file .*toy_point.py; did you mean .*toy_points.py"):
        overrides.load_experiment(file.with_name("toy_point.py"), "tiny")
    with pytest.raises(ValueError, match="has no size 'medium'; its sizes: tiny, small, wide"):
        overrides.load_experiment(file, "medium")
    with pytest.raises(ValueError, match=r"experiment\('huge'\) of .* returned int, expected an Experiment"):
        overrides.load_experiment(file, "huge")
    file.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"defines no function experiment\(size\)"):
        overrides.load_experiment(file, "tiny")


def test_a_key_error_of_the_file_itself_is_not_taken_for_a_size(file):
    file.write_text('def experiment(size):\n    return {}["nose"]\n')
    with pytest.raises(KeyError, match="nose"):
        overrides.load_experiment(file, "tiny")


def test_the_experiment_checks_its_numbers(file):
    with pytest.raises(ValueError, match="save_every must be at least 1, got 0"):
        overrides.load_experiment(file, "tiny", ["save_every=0"])
