"""What each `mmjax` command does with what was typed (see cli.py). Heavy packages load inside the command that needs
them."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORDS = Path("experiments/results.jsonl")
PLANS = Path("experiments/plans.jsonl")
SPEECH = ("system", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def train(asked: argparse.Namespace) -> int:
    from mmjax.parallel import distributed
    from mmjax.train import loop, run_folder

    distributed.initialize(
        asked.coordinator, asked.num_processes, asked.process_id, timeout=asked.start_timeout, heartbeat=asked.heartbeat
    )
    if asked.record:
        run_folder.can_record(RECORDS)
    recipe = run_folder.Recipe(asked.file, asked.size, tuple(asked.overrides))
    experiment, workdir = recipe.build(), asked.workdir or run_folder.default(recipe)
    loop.train(
        experiment, workdir, recipe=recipe, resume=asked.resume, load_hf=_weights,
        record=RECORDS if asked.record else None, wandb=asked.wandb, verify=asked.verify,
    )  # fmt: skip
    distributed.barrier("end", timeout=3600)  # process 0 may still write the report
    return 0


def _weights(path: Path) -> tuple[Any, Any]:
    """Model and variables of a folder of Hugging Face's, or of a GGUF file."""
    from mmjax import weights

    return weights.load_gguf(path) if path.is_file() else weights.load_hf(path)


def eval(asked: argparse.Namespace) -> int:
    from mmjax.train import checkpoint, loop, run_folder, sources
    from mmjax.train.logging import as_lines

    experiment = run_folder.rebuild(asked.run)
    evals = experiment.evals + experiment.final_evals
    if not evals:
        raise ValueError(f"the experiment of {asked.run} has no evals")
    step = checkpoint.Checkpoints(run_folder.checkpoints(asked.run)).find()
    place = sources.placing(_mesh_here(experiment.mesh), experiment.rules)
    variables = checkpoint.load_variables(asked.run, experiment.task.serve, place=place, step=step)
    result = loop.evaluate(experiment, variables, evals, step)
    print(f"step {step} of {asked.run}\n{as_lines(result.metrics)}")
    return 0


def _mesh_here(shape: Any) -> Any:
    """The run's mesh, or all devices side by side where it was trained on another number of them."""
    from mmjax.parallel.mesh import MeshShape

    try:
        return shape.build()
    except ValueError as error:
        print(f"{error}. Evaluating with data parallelism over the devices here", flush=True)
        return MeshShape().build()


def sample(asked: argparse.Namespace) -> int:
    images = tuple(_picture(path) for path in asked.image)
    if asked.weights is not None:
        return _sample_weights(asked, images, tuple(asked.words))
    if not asked.words:
        raise ValueError("sample needs a run folder (or --weights PATH), then texts: mmjax sample RUN TEXT...")
    return _sample_run(asked, Path(asked.words[0]), images, tuple(asked.words[1:]))


def _refuse_speech(asked: argparse.Namespace, what: str) -> None:
    """Options of language models say nothing to anything else."""
    from mmjax import cli

    usual = cli.parser().parse_args(["sample"])
    given = [name for name in SPEECH if getattr(asked, name) != getattr(usual, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} cannot be given for {what}; only weights of a language model take them")


def _sample_run(asked: argparse.Namespace, run: Path, images: tuple, texts: tuple[str, ...]) -> int:
    import jax

    from mmjax.nn.outputs import Request
    from mmjax.train import checkpoint, run_folder

    _refuse_speech(asked, f"the run {run}, which answers as its experiment says")
    experiment = run_folder.rebuild(run)
    if experiment.sample is None:
        raise ValueError(f"the experiment of {run} defines no `sample`, so it cannot be asked anything")
    variables = checkpoint.load_variables(run, experiment.task.serve)
    rng = jax.random.key(experiment.seed)
    answer = experiment.sample(experiment.task.model, variables, Request(texts, images), experiment.data, rng)
    print(answer.text)
    _write_pictures(run / "samples", answer.pictures)
    return 0


def _sample_weights(asked: argparse.Namespace, images: tuple, texts: tuple[str, ...]) -> int:
    """By a model of another library: a CLIP compares, a BERT searches or labels, a language model answers."""
    from mmjax import talk, weights
    from mmjax.models import clip
    from mmjax.text import language
    from mmjax.weights import bert

    if not texts:
        raise ValueError(f"give some text: mmjax sample --weights {asked.weights} TEXT...")
    if asked.weights.is_file():
        _refuse_images(asked.weights, "language model", images)
        return talk.answer(asked, *weights.load_gguf(asked.weights), weights.load_language(asked.weights), texts)
    model, variables = weights.load_hf(asked.weights)
    if isinstance(model, clip.CLIP):
        _refuse_speech(asked, f"{asked.weights}, a CLIP")
        return _compare(asked.weights, model, variables, images, texts)
    if hasattr(type(model), "encode_image"):
        raise ValueError(
            f"{asked.weights} holds a {type(model).__name__}, which comes without a tokenizer that is read here; ask "
            "it from Python, by mmjax.weights.load_hf"
        )
    _refuse_images(asked.weights, type(model).__name__, images)
    if isinstance(model, bert.MODEL):
        _refuse_speech(asked, f"{asked.weights}, a BERT")
        from mmjax.evals import semantic_search

        print(semantic_search.answer(asked.weights, model, variables, texts).text)
        return 0
    return talk.answer(asked, model, variables, language.from_folder(asked.weights), texts)


def _refuse_images(weights: Path, what: str, images: tuple) -> None:
    if images:
        raise ValueError(f"{weights} holds a {what}, which sees no pictures; leave --image out")


def _compare(folder: Path, model: Any, variables: Mapping, images: tuple, texts: tuple[str, ...]) -> int:
    """Zero-shot probabilities of the texts for each image, by a CLIP."""
    import numpy as np

    from mmjax.evals import features, search
    from mmjax.ops import images as image_ops
    from mmjax.text import clip_bpe

    if not images:
        raise ValueError(f"{folder} holds a CLIP, which compares pictures with texts; give --image FILE too")
    config, tokenizer = model.config, clip_bpe.load(folder)
    pixels = [
        image_ops.preprocess(one, config.vision.image_size, config.image_mean, config.image_std) for one in images
    ]
    image_embeds = features.encode_images(model, variables, np.stack(pixels))
    text_embeds = features.encode_texts(model, variables, lambda x: tokenizer.rows(x, config.text.length), texts)
    for row in search.chances(image_embeds @ text_embeds.T, variables["params"]):
        print("\n".join(f"  {row[best]:6.1%}  {texts[best]}" for best in np.argsort(-row, kind="stable")))
    return 0


def align(asked: argparse.Namespace) -> int:
    from mmjax import align as alignment

    print(alignment.run(asked))
    return 0


def plan(asked: argparse.Namespace) -> int:
    from mmjax.parallel import plan as plans
    from mmjax.train import overrides, run_folder, sources, step

    if asked.record:
        run_folder.can_record(PLANS)
    machine = plans.topology(asked.topology)  # first: it keeps JAX from looking for accelerators here
    experiment = overrides.load_experiment(asked.file, asked.size, asked.overrides)
    mesh = experiment.mesh.build(machine.devices)
    loaded = sources.shapes(experiment.init_from, asked.size, asked.file.parent)
    traced = step.build(experiment, mesh, loaded).trace()
    print(f"compiling {asked.file} --size {asked.size} for {asked.topology}; large models take minutes", flush=True)
    made = plans.make(traced, machine, mesh)
    print(made)
    if asked.record and made.fits:
        import jax

        recipe = run_folder.Recipe(asked.file, asked.size, tuple(asked.overrides))
        known = run_folder.describe(experiment, recipe)
        line = {name: known[name] for name in ("stem", "size", "overrides", "commit", "batch_size")}
        run_folder.append(PLANS, {**line, **made.record(), "versions": {"jax": jax.__version__}})
    return 0 if made.fits else 1


def convert(asked: argparse.Namespace) -> int:
    from mmjax import weights

    weights.convert(asked.source, asked.target, to=asked.to)
    print(f"wrote {asked.target}")
    return 0


def list(asked: argparse.Namespace) -> int:
    import ast

    from mmjax.train import overrides

    files = sorted(asked.folder.glob("[!_]*.py")) if asked.folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"no experiments in {asked.folder}; give their folder: mmjax list FOLDER")
    for file in files:
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "no docstring"
        print(f"{file}  [{', '.join(overrides.sizes(file))}]\n    {about.splitlines()[0]}")
    return 0


def _picture(path: Path) -> Any:
    """[H W 3] uint8 of an image file, as ops/images.py's `shown` says."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from mmjax.ops import images as image_ops

    try:
        with Image.open(path) as image:
            return np.asarray(image_ops.shown(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that Pillow can read") from error
    except ValueError as error:
        raise ValueError(f"{path} can't be shown to a model: {error}") from error


def _write_pictures(folder: Path, pictures: Mapping[str, Any]) -> None:
    from mmjax.ops import images as image_ops

    for stem, pixels in pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}.png"
        image_ops.save_png(pixels, path)
        print(f"wrote {path}")
