"""CLIP from and to transformers, openai/CLIP and open_clip: equal outputs, equal bits, and errors one can act on."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax import weights
from mmjax.models import clip
from mmjax.ops import images as image_ops
from mmjax.parallel import mesh, rules
from mmjax.weights import clip as names
from mmjax.weights import engine, open_clip

HF, LEGACY, OPEN_CLIP = (Path("tests/goldens") / name for name in ("hf_clip", "hf_clip_legacy", "open_clip"))
OUTPUTS = ("image_embeds", "text_embeds", "logit_scale")


def outputs(folder: Path) -> dict:
    return dict(np.load(folder / "outputs.npz"))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images, input_ids):  # one compilation for equal models
    return model.apply(variables, images, input_ids)


def assert_equal_outputs(model, variables, golden, atol=1e-5):
    out = apply(model, variables, golden["images"], golden["input_ids"])
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(out, name), golden[name], atol=atol, rtol=1e-5, err_msg=name)
    if "logits_per_image" in golden:  # cosines times a scale of 20
        np.testing.assert_allclose(out.logits_per_image, golden["logits_per_image"], atol=1e-4)


def assert_same_file(one: Path, other: Path):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.fixture(scope="module")
def hf():
    return weights.load_hf(HF)


@pytest.fixture
def folder(tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(HF, tmp_path / "model"))


# --- the original's numbers


def test_a_folder_of_transformers_computes_what_the_original_computed(hf):
    assert_equal_outputs(*hf, outputs(HF))


def test_a_folder_of_2022_in_half_precision_and_shards_does_too():
    model, variables = weights.load_hf(LEGACY)
    assert model.config.text.eos_id is None  # eos_token_id 2: the highest id
    assert jax.tree.leaves(variables)[0].dtype == jnp.float32
    assert_equal_outputs(model, variables, outputs(LEGACY))


@pytest.mark.parametrize("name", ["", "open_clip_model.safetensors", "epoch_1.pt"])
def test_open_clip_computes_what_the_original_computed(name):
    assert_equal_outputs(*weights.load_openai(OPEN_CLIP / name), outputs(OPEN_CLIP))


def test_openai_torchscript_computes_it_to_half_precision():
    assert_equal_outputs(*weights.load_openai(OPEN_CLIP / "openai.pt"), outputs(OPEN_CLIP), atol=2e-3)


def test_larger_images_follow_the_rule_of_transformers():
    model, variables = weights.load_hf(HF, image_size=12)
    golden = outputs(HF)
    embeds = model.apply(variables, golden["images_12"], method="encode_image")
    np.testing.assert_allclose(embeds, golden["image_embeds_12"], atol=1e-5)


def test_the_config_may_ask_for_it_at_each_call(hf):
    model, variables = hf
    vision = dataclasses.replace(model.config.vision, resize=image_ops.resize_cubic)
    model = clip.CLIP(dataclasses.replace(model.config, vision=vision))
    golden = outputs(HF)
    embeds = model.apply(variables, golden["images_12"], method="encode_image")
    np.testing.assert_allclose(embeds, golden["image_embeds_12"], atol=1e-5)


def test_larger_images_follow_the_rule_of_open_clip():
    model, variables = weights.load_openai(OPEN_CLIP, image_size=16)
    golden = outputs(OPEN_CLIP)
    embeds = model.apply(variables, golden["images_16"], method="encode_image")
    np.testing.assert_allclose(embeds, golden["image_embeds_16"], atol=1e-5)


# --- there and back


def test_there_and_back_keeps_every_bit(hf, tmp_path):
    weights.save_hf(tmp_path, *hf)
    assert_same_file(tmp_path / "model.safetensors", HF / "model.safetensors")
    assert weights.load_hf(tmp_path)[0] == hf[0]  # the config, too


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_keeps_every_bit(folder, tmp_path, dtype):
    tensors = {name: x.astype(dtype) for name, x in load_file(HF / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    weights.save_hf(tmp_path / "back", *weights.load_hf(folder, dtype=None))
    assert_same_file(tmp_path / "back" / "model.safetensors", folder / "model.safetensors")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == np.dtype(dtype).name


def test_open_clip_there_and_back_keeps_every_bit(tmp_path):
    model, variables = weights.load_openai(OPEN_CLIP)
    weights.save_openai(tmp_path, model, variables)
    assert_same_file(tmp_path / "open_clip_model.safetensors", OPEN_CLIP / "open_clip_model.safetensors")
    assert weights.load_openai(tmp_path)[0] == model


def test_convert_to_transformers_and_back_keeps_every_bit(tmp_path):
    weights.convert(OPEN_CLIP, tmp_path / "hf")
    assert_equal_outputs(*weights.load_hf(tmp_path / "hf"), outputs(OPEN_CLIP))
    weights.convert(tmp_path / "hf", tmp_path / "back", to="open_clip")
    assert_same_file(tmp_path / "back" / "open_clip_model.safetensors", OPEN_CLIP / "open_clip_model.safetensors")
    assert_equal_outputs(*weights.load_openai(tmp_path / "back"), outputs(OPEN_CLIP))


def test_each_table_names_each_leaf_once(hf):
    leaves = engine.flatten(hf[1]["params"])
    for table in (names.RULES, open_clip.RULES):
        used = [path for rule in table for path in ([rule.ours] if isinstance(rule.ours, str) else rule.ours)]
        assert sorted(used) == sorted(leaves)


# --- onto a mesh


def test_a_sharded_load_equals_the_whole_and_no_device_is_given_more_than_its_part(hf, monkeypatch):
    grid = mesh.MeshShape(data=1, fsdp=4, tensor=2).build()
    stacked = []
    monkeypatch.setattr(engine.np, "stack", lambda parts: stacked.append(stack(parts)) or stacked[-1])
    _, variables = weights.load_hf(HF, shardings=functools.partial(rules.shardings, grid, rules.DEFAULT))
    kernel = variables["params"]["vision"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 12, 28)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 3, 14)}
    assert {x.shape for x in stacked if x.ndim == 3} >= {(2, 3, 14)}
    assert (2, 12, 28) not in {x.shape for x in stacked}  # not even on the host
    for ours, whole in zip(jax.tree.leaves(variables), jax.tree.leaves(hf[1]), strict=True):
        np.testing.assert_array_equal(ours, whole)


stack = np.stack


def test_a_sharded_load_for_larger_images_is_placed_too():
    grid = mesh.MeshShape(data=2, fsdp=4).build()
    place = functools.partial(rules.shardings, grid, rules.DEFAULT)
    _, variables = weights.load_hf(HF, image_size=12, shardings=place)
    position = variables["params"]["vision"]["pos_embed"]
    assert {shard.data.shape for shard in position.addressable_shards} == {(10, 3)}
    whole = weights.load_hf(HF, image_size=12)[1]["params"]["vision"]["pos_embed"]
    np.testing.assert_allclose(position, whole, atol=1e-6)


# --- what users get wrong


def edit(path: Path, **changes):
    """Sets fields, or removes those given as None; "text_config.hidden_act" is written text_config__hidden_act."""
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = functools.reduce(dict.__getitem__, parents, config)
        place[last] = value
        if value is None:
            del place[last]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clap"}, "config.json: model_type is 'clap', supported are clip"),
        ({"model_type": None}, "config.json: model_type is 'missing', supported are clip"),
        ({"text_config": None}, "config.json: text_config is missing, expected an object"),
        ({"vision_config__hidden_act": "relu"}, "hidden_act is 'relu', supported are quick_gelu, gelu"),
        ({"vision_config__hidden_size": "12"}, "vision_config: hidden_size is '12', expected a whole number"),
        ({"text_config__num_attention_heads": True}, "num_attention_heads is True, expected a whole number"),
        ({"vision_config__num_channels": 4}, "num_channels is 4, supported is 3 only"),
        ({"vision_config__patch_size": 3}, "image_size must be a multiple of patch_size"),
        ({"text_config__num_hidden_layers": 2}, "unknown text_model.encoder.layers.2.layer_norm1.bias"),
        ({"text_config__num_hidden_layers": 4}, "missing text_model.encoder.layers.3"),
        ({"projection_dim": 5}, r"visual_projection.weight is \[6, 12\], expected \[5, 12\]"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_sentence(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        weights.load_hf(folder)


def test_a_wrong_preprocessor_is_one_sentence(folder):
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: image_mean is \[0\.5\], expected three numbers"):
        weights.load_hf(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|must hold a JSON object)"):
        weights.load_hf(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        weights.load_hf(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        weights.convert(tmp_path / "nowhere", tmp_path / "out")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        weights.load_hf(folder)
    with pytest.raises(FileNotFoundError, match=r"holds neither config\.json nor open_clip_model\.safetensors"):
        weights.convert(folder, tmp_path / "out")


def test_missing_unknown_and_misshapen_tensors(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projections.weight"] = tensors.pop("visual_projection.weight")
    tensors["text_projection.weight"] = tensors["text_projection.weight"].T.copy()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit transformers' CLIPModel of its config.json") as error:
        weights.load_hf(folder)
    assert "missing visual_projection.weight (there is visual_projections.weight)" in str(error.value)
    assert "unknown visual_projections.weight" in str(error.value)
    assert "text_projection.weight is [8, 6], expected [6, 8]" in str(error.value)


def test_a_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        weights.load_hf(folder)


def test_a_file_of_another_model_is_no_openai_clip():
    with pytest.raises(ValueError, match=r"is no ViT-CLIP of OpenAI or open_clip: visual\.conv1\.weight is missing"):
        weights.load_openai(HF / "model.safetensors")


def test_open_clip_features_that_clip_lacks_are_refused(tmp_path):
    folder = Path(shutil.copytree(OPEN_CLIP, tmp_path / "model"))
    edit(folder / "open_clip_config.json", model_cfg__text_cfg__no_causal_mask=True)
    with pytest.raises(ValueError, match="text_cfg: no_causal_mask is True, which CLIP does not have"):
        weights.load_openai(folder)


def test_quick_gelu_is_asked_only_where_no_config_tells(tmp_path):
    shutil.copy(OPEN_CLIP / "epoch_1.pt", tmp_path)
    with pytest.raises(ValueError, match="quick_gelu=False contradicts"):
        weights.load_openai(OPEN_CLIP, quick_gelu=False)
    edited = functools.partial(open_clip._config, tmp_path / "epoch_1.pt")
    assert edited(None).values["model_cfg"]["quick_gelu"] is True
    assert edited(False).values["model_cfg"]["quick_gelu"] is False


@pytest.mark.parametrize(
    ("save", "change", "message"),
    [
        (weights.save_hf, {"text": {"eos_id": 2}}, "eos_id 2 cannot be written"),
        (weights.save_hf, {"text": {"activation": jnp.tanh}}, "supported are quick_gelu, gelu"),
        (weights.save_openai, {"text": {"eos_id": 5}}, "reads the text at its highest id, got eos_id 5"),
        (weights.save_openai, {}, "one activation for both towers"),  # the golden has gelu and quick_gelu
    ],
)
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(hf, tmp_path, save, change, message):
    model, variables = hf
    towers = {name: dataclasses.replace(getattr(model.config, name), **fields) for name, fields in change.items()}
    if message.startswith("reads"):
        towers["vision"] = dataclasses.replace(model.config.vision, activation=model.config.text.activation)
        towers["text"] = dataclasses.replace(towers["text"], epsilon=1e-5)
    model = clip.CLIP(dataclasses.replace(model.config, **towers))
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "out", model, variables)
    assert not (tmp_path / "out").exists()


def test_a_stem_has_no_place_in_transformers(tmp_path):
    config = clip.CLIPConfig.tiny()
    model = clip.CLIP(dataclasses.replace(config, vision=dataclasses.replace(config.vision, stem=(4,))))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), names.abstract(model))
    with pytest.raises(ValueError, match="has no place for this model: no tensor for vision/stem/conv0/kernel"):
        weights.save_hf(tmp_path, model, variables)


def test_only_known_models_are_written(tmp_path):
    with pytest.raises(ValueError, match="save_hf cannot write a object; it writes CLIP"):
        weights.save_hf(tmp_path, object(), {})


# --- the original reads what we write


@pytest.mark.parity
def test_transformers_reads_what_is_written(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = clip.CLIPConfig.tiny()
    model = clip.CLIP(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), names.abstract(model))
    weights.save_hf(tmp_path, model, variables)
    original, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched

    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    input_ids = rng.integers(0, 500, (3, 16))
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        theirs = original.eval()(input_ids=torch.from_numpy(input_ids), pixel_values=pixels)
    ours = model.apply(variables, images, input_ids)
    for name in ("image_embeds", "text_embeds"):
        np.testing.assert_allclose(getattr(ours, name), theirs[name], atol=1e-5)
    original.save_pretrained(tmp_path / "again")
    assert_same_file(tmp_path / "again" / "model.safetensors", tmp_path / "model.safetensors")


@pytest.mark.parity
def test_open_clip_reads_what_is_written(tmp_path):
    original = pytest.importorskip("open_clip")
    torch = pytest.importorskip("torch")
    model, variables = weights.load_openai(OPEN_CLIP)
    weights.save_openai(tmp_path, model, variables)
    theirs = original.create_model(f"local-dir:{tmp_path}").eval()
    golden = outputs(OPEN_CLIP)
    with torch.no_grad():
        embeds = theirs.encode_image(torch.from_numpy(golden["images"]).permute(0, 3, 1, 2), normalize=True)
    np.testing.assert_allclose(embeds, golden["image_embeds"], atol=1e-5)
