"""Mixture of Features: who mixes with whom, what is read of the towers, and the weights of both adapters."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import clip, dino, features, vit
from mmjax.models.features import Additive, Identity, Interleaved, MLPAdapter
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm

RNG = np.random.default_rng(0)
CLIP, DINO = RNG.normal(size=(2, 2, 9, 6)).astype(np.float32)  # [B N D] each
ADAPTER = partial(MLPAdapter, 5)


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def golden():
    return dict(np.load("tests/goldens/mof.npz"))


def with_params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), CLIP, DINO)
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), shapes)  # biases too


# --- mixing


def test_mixing_and_adapters_equal_the_golden(golden):
    for kind, adapter in (("linear", partial(Linear, 10)), ("mlp2x_gelu", partial(MLPAdapter, 10))):
        both = {}
        for ours, theirs in (("clip_adapter", "mm_projector"), ("dino_adapter", "dino_mm_projector")):
            name = f"{kind}/model.{theirs}"
            layers = {"": ""} if kind == "linear" else {"up": ".0", "down": ".2"}
            parts = {
                part: {"kernel": golden[f"{name}{number}.weight"].T, "bias": golden[f"{name}{number}.bias"]}
                for part, number in layers.items()
            }
            both[ours] = parts.get("", parts)
        tokens = Interleaved(adapter).apply({"params": both}, golden["clip"], golden["dino"])
        np.testing.assert_allclose(tokens, golden[f"interleaved/{kind}"], rtol=1e-5, atol=1e-5)
        shared = {"params": {"adapter": both["clip_adapter"]}}
        for alpha, expected in zip(golden["alphas"], golden[f"additive/{kind}"], strict=True):
            tokens = Additive(adapter, alpha=float(alpha)).apply(shared, golden["clip"], golden["dino"])
            np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=1e-5)


def test_the_ends_of_additive_are_one_branch_bit_for_bit():
    same_bits(features.additive(CLIP, DINO, 1.0), CLIP)
    same_bits(features.additive(CLIP, DINO, 0.0), DINO)
    one, other = Additive(ADAPTER, alpha=1.0), Additive(ADAPTER, alpha=0.0)
    variables, forward = with_params(one), jax.jit(lambda model, *args: model.apply(*args), static_argnums=0)
    same_bits(forward(one, variables, CLIP, DINO), forward(one, variables, CLIP, CLIP))
    same_bits(forward(other, variables, CLIP, DINO), forward(one, variables, DINO, CLIP))
    alone = {"params": variables["params"]["adapter"]}
    same_bits(forward(one, variables, CLIP, DINO), forward(MLPAdapter(5), alone, CLIP))


def test_additive_weighs_clip_by_alpha():
    np.testing.assert_allclose(features.additive(CLIP, DINO, 0.25), 0.25 * CLIP + 0.75 * DINO, rtol=1e-6)


def test_interleaving_puts_patch_after_patch_clip_first():
    merged = features.interleave(CLIP, DINO)
    assert merged.shape == (2, 18, 6)
    for patch in range(9):
        same_bits(merged[:, 2 * patch], CLIP[:, patch])
        same_bits(merged[:, 2 * patch + 1], DINO[:, patch])
    back = features.parted(merged)
    same_bits(back.clip, CLIP)
    same_bits(back.dino, DINO)


def test_permuting_dinos_patches_moves_odd_places_only():
    model = Interleaved(ADAPTER)
    variables, order = with_params(model), RNG.permutation(9)
    tokens, moved = model.apply(variables, CLIP, DINO), model.apply(variables, CLIP, DINO[:, order])
    same_bits(moved[:, ::2], tokens[:, ::2])
    same_bits(moved[:, 1::2], tokens[:, 1::2][:, order])


def test_each_branch_of_interleaved_has_its_own_adapter():
    model = Interleaved(ADAPTER)
    variables = with_params(model)
    tokens = features.parted(model.apply(variables, CLIP, DINO))
    for name, x, found in (("clip_adapter", CLIP, tokens.clip), ("dino_adapter", DINO, tokens.dino)):
        p = jax.tree.map(lambda x: x.astype(np.float64), variables["params"][name])
        hidden = x.astype(np.float64) @ p["up"]["kernel"] + p["up"]["bias"]
        exact = hidden * np.vectorize(lambda v: 0.5 * (1 + float(jax.lax.erf(v / 2**0.5))))(hidden)
        np.testing.assert_allclose(found, exact @ p["down"]["kernel"] + p["down"]["bias"], rtol=1e-4, atol=1e-4)


def test_options_have_their_parameters():
    names = {name: set(with_params(model)["params"]) for name, model in {
        "shared": Additive(ADAPTER), "own": Additive(ADAPTER, own_adapters=True), "interleaved": Interleaved(ADAPTER),
        "normed": Interleaved(partial(Linear, 5), norm=partial(LayerNorm, 1e-6)),
    }.items()}  # fmt: skip
    both = {"clip_adapter", "dino_adapter"}
    assert names == {
        "shared": {"adapter"}, "own": both, "interleaved": both, "normed": both | {"clip_norm", "dino_norm"},
    }  # fmt: skip
    assert Additive(Identity).init(jax.random.key(0), CLIP, DINO) == {}
    same_bits(Interleaved(Identity).apply({}, CLIP, DINO), features.interleave(CLIP, DINO))


def test_a_norm_takes_the_scale_of_each_branch_before_they_are_mixed():
    model = Additive(Identity, norm=partial(LayerNorm, 1e-6))
    variables = model.init(jax.random.key(0), CLIP, DINO)
    np.testing.assert_allclose(
        model.apply(variables, 100 * CLIP, DINO), model.apply(variables, CLIP, DINO), rtol=1e-4, atol=1e-4
    )


def test_own_adapters_join_towers_of_different_widths():
    wide = np.concatenate([DINO, DINO], -1)
    model = Additive(ADAPTER, own_adapters=True)
    assert model.apply(model.init(jax.random.key(0), CLIP, wide), CLIP, wide).shape == (2, 9, 5)
    with pytest.raises(ValueError, match=r"got \[2, 9, 6\] and \[2, 9, 12\]; .* adapters of their own"):
        Additive(ADAPTER).init(jax.random.key(0), CLIP, wide)


@pytest.mark.parametrize("mix", [partial(features.additive, alpha=0.5), features.interleave])
def test_shapes_that_do_not_fit_are_said(mix):
    for one, other in ((CLIP, DINO[:, :8]), (CLIP, DINO[..., :5]), (CLIP[0], DINO[0]), (CLIP, DINO[:1])):
        with pytest.raises(ValueError, match=r"both branches must be \[B N D\] of one shape"):
            mix(one, other)


def test_an_odd_number_of_tokens_is_not_interleaved():
    with pytest.raises(ValueError, match=r"interleaved tokens are \[B 2N H\], got \[2, 9, 6\]"):
        features.parted(CLIP)


def test_published_adapters_have_the_published_sizes():
    for model, count in ((features.llava_13b(), 31_467_520), (features.llava_7b(), 20_979_712)):
        tokens = jax.ShapeDtypeStruct((1, 576, 1024), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
        for adapter in ("clip_adapter", "dino_adapter"):
            assert sum(x.size for x in jax.tree.leaves(shapes[adapter])) == count
        merged = jax.eval_shape(model.apply, {"params": shapes}, tokens, tokens)
        assert merged.shape[:2] == (1, 1152)


# --- towers


IMAGES = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
STATES = jnp.asarray(RNG.normal(size=(3, 2, 18, 4)))  # [L B P+N D] of towers that show only what is read of them


@dataclasses.dataclass(frozen=True)
class Seen:
    """A tower that keeps what it was shown."""

    config: vit.ViTConfig
    pixels: list

    def __call__(self, images, *, collect):
        self.pixels.append(np.asarray(images))
        return vit.ViTOutput(STATES[-1] + 10, STATES[-1, :, 0], STATES if collect else None)


@dataclasses.dataclass(frozen=True)
class Scaled:
    config: vit.ViTConfig
    scale: float

    def __call__(self, images, *, collect):
        return vit.ViTOutput(STATES[-1], STATES[-1, :, 0], self.scale * STATES)


def seen(prefix=1, mean=(0.5, 0.5, 0.5), patch_size=8):
    colours = {"image_mean": mean, "image_std": (0.25, 0.25, 0.25)}
    return Seen(dataclasses.replace(vit.ViTConfig.tiny(), registers=prefix - 1, patch_size=patch_size, **colours), [])


def test_published_layers_without_class_token_and_registers():
    both = features.of_towers(seen(prefix=2), seen(prefix=2), IMAGES)
    same_bits(both.clip, STATES[-2][:, 2:])
    same_bits(both.dino, STATES[-1][:, 2:])
    other = features.of_towers(
        seen(2), seen(2), IMAGES, clip_layer=features.last_block, dino_layer=features.last_normed
    )
    same_bits(other.clip, STATES[-1][:, 2:])
    same_bits(other.dino, STATES[-1][:, 2:] + 10)


def test_dino_sees_clips_pixels_unless_it_is_given_colours():
    clip_tower, dino_tower = seen(mean=(0.1, 0.2, 0.3)), seen(mean=(0.4, 0.5, 0.6))
    features.of_towers(clip_tower, dino_tower, IMAGES)
    same_bits(clip_tower.pixels[0], dino_tower.pixels[0])
    np.testing.assert_allclose(clip_tower.pixels[0], (IMAGES / 255 - [0.1, 0.2, 0.3]) / 0.25, atol=1e-5)
    features.of_towers(clip_tower, dino_tower, IMAGES, dino_colours=features.colours_of(dino_tower))
    np.testing.assert_allclose(dino_tower.pixels[1], (IMAGES / 255 - [0.4, 0.5, 0.6]) / 0.25, atol=1e-5)
    floats = RNG.normal(size=IMAGES.shape).astype(np.float32)
    features.of_towers(clip_tower, dino_tower, floats)
    same_bits(clip_tower.pixels[2], floats)
    same_bits(dino_tower.pixels[2], floats)
    with pytest.raises(ValueError, match="float images are normalised already"):
        features.of_towers(clip_tower, dino_tower, floats, dino_colours=features.colours_of(dino_tower))


def test_towers_of_different_grids_are_refused():
    with pytest.raises(ValueError, match=r"the same grid, got 17 and 16 patches of 8 and 4 pixels"):
        features.of_towers(seen(prefix=1), seen(prefix=2, patch_size=4), IMAGES)


def test_features_of_clip_and_dino():
    models = clip.CLIP(clip.CLIPConfig.tiny()), dino.DINO(dino.DINOConfig.tiny())
    shapes = (
        jax.eval_shape(models[0].init, jax.random.key(0), IMAGES, np.zeros((2, 16), np.int32)),
        jax.eval_shape(models[1].init, jax.random.key(0), IMAGES[:, None]),
    )
    variables = jax.tree.map(lambda x: 0.3 * RNG.normal(size=x.shape).astype(np.float32), shapes)

    @jax.jit
    def both(variables):
        bound = [model.bind(x) for model, x in zip(models, variables, strict=True)]
        pixels = (IMAGES / np.float32(255) - np.float32(0.5)) / np.float32(0.5)  # in CLIP's colours
        states = [tower(pixels, collect=True).hidden_states for tower in (bound[0].vision, bound[1].backbone)]
        return features.of_towers(*bound, IMAGES), states

    found, states = both(variables)
    assert found.clip.shape == found.dino.shape == (2, (32 // 8) ** 2, 16)
    assert features.interleave(*found).shape[1] == 2 * (32 // 8) ** 2
    np.testing.assert_allclose(found.clip, states[0][-2][:, 1:], atol=1e-5)
    np.testing.assert_allclose(found.dino, states[1][-1][:, 1:], atol=1e-5)


def test_no_gradient_goes_into_the_towers():
    def total(scale):
        tower = dataclasses.replace(seen(), pixels=None)
        both = features.of_towers(Scaled(tower.config, scale), Scaled(tower.config, scale), IMAGES)
        return sum(x.sum() for x in both)

    assert total(1.0) != 0
    assert jax.grad(total)(1.0) == 0


def test_a_bare_tower_of_clip_has_no_colours():
    tower = clip.VisionTower(clip.CLIPConfig.tiny().vision)
    with pytest.raises(ValueError, match="give the whole CLIP"):
        features.colours_of(tower)
    with pytest.raises(ValueError, match="no layer before the last"):
        features.before_last(vit.ViTOutput(STATES[0], STATES[0, :, 0], STATES[:1]))
