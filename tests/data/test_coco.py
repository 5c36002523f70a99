"""COCO's and RefCOCO's files, made here of composed scenes; one clear sentence for all that can be wrong with them."""

import json

import numpy as np
import pytest
import scene_truth
from PIL import Image

from mmjax.data import coco, coco_masks, scene_questions, scene_text, scene_turns, scenes
from mmjax.data.coco import CocoData
from mmjax.text import coordinates

WIDTH, HEIGHT, TOP = 80, 64, 8  # of the pictures; they lie below 8 white rows of their square
SIZE = scenes.Composer(size=80, scale=(0.45, 0.95))  # so that a pixel of the picture is one of the square
BOXES, REGION = (scene_text.id_of(token) for token in ("<boxes>", "<region_fea>"))


@pytest.fixture(autouse=True)
def fresh():
    coco.read.cache_clear()


@pytest.fixture(scope="module")
def made():
    return scene_questions.SceneQuestions(twins=0).examples("validation", 10)


def edges(thing, side=64) -> list[float]:
    return [round(x * side, 6) for x in thing.box]


@pytest.fixture
def pictures(tmp_path, made):
    """Scenes with 16 white columns at the right, in a folder below, and both files."""
    (tmp_path / "files").mkdir()
    images, annotations, lines = [], [], []
    names = sorted({thing.name for example in made for thing in example.things})
    for n, example in enumerate(made):
        file = f"files/{n}.png"
        pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
        pixels[:, :64] = example.image
        Image.fromarray(pixels).save(tmp_path / file)
        images.append({"id": 100 + n, "file_name": file, "width": WIDTH, "height": HEIGHT})
        for k, (thing, mask) in enumerate(zip(example.things, example.masks, strict=True)):
            x0, y0, x1, y1 = edges(thing)
            whole = coco_masks.encode(np.pad(mask, ((0, 0), (0, 16))))
            plain = {**whole, "counts": coco_masks.from_text(whole["counts"])}
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 100 + n,
                    "category_id": names.index(thing.name),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": (whole, plain)[k % 2],
                    "iscrowd": 0,
                }  # fmt: skip
            )
            said = {"expression": f"The {thing.name}"} if k % 2 else {"sentences": [thing.name, f"a {thing.name} here"]}
            lines.append({"image": file, "box": [x0, y0, x1, y1], "mask": whole, **said})
    contents = {"images": images, "annotations": annotations, "categories": categories(names)}
    (tmp_path / "annotations.json").write_text(json.dumps(contents))
    (tmp_path / "refs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def categories(names):
    return [{"id": n, "name": name.title()} for n, name in enumerate(names)]


def data(path, annotations="annotations.json", **fields):
    return CocoData(path=str(path), annotations=annotations, composer=SIZE, **fields)


def all_examples(one):
    return {e.image[:, :64].tobytes(): e for split in coco.SPLITS for e in one.examples(split, 99)}


def test_pictures_boxes_masks_and_names_come_back(pictures, made):
    read = all_examples(data(pictures))
    assert len(read) == len(made) == 10
    for example in made:
        pixels = np.full((80, 64, 3), 255, np.uint8)
        pixels[TOP : TOP + 64] = example.image
        found = read[pixels.tobytes()]
        assert [thing.name for thing in found.things] == [thing.name for thing in example.things]
        for ours, mask, theirs, whole in zip(found.things, found.masks, example.things, example.masks, strict=True):
            np.testing.assert_allclose(np.array(ours.box) * 80, np.array(edges(theirs)) + [0, TOP, 0, TOP])
            np.testing.assert_array_equal(mask, np.pad(whole, ((TOP, TOP), (0, 16))))


def test_expressions_have_the_same_boxes(pictures):
    instances, referring = all_examples(data(pictures)), all_examples(data(pictures, "refs.jsonl"))
    assert set(instances) == set(referring)
    said = set()
    for key, example in instances.items():
        other = referring[key]
        np.testing.assert_allclose([t.box for t in example.things], [t.box for t in other.things])
        np.testing.assert_array_equal(example.masks, other.masks)
        for a, b in zip(example.things, other.things, strict=True):
            said.add(b.name.removeprefix(a.name))
    assert said == {"", " here"}  # without articles, and in lower case


def test_questions_have_one_answer(pictures):
    counts = {}
    for annotations in ("annotations.json", "refs.jsonl"):
        for example in all_examples(data(pictures, annotations)).values():
            things = [scene_truth.Seen(*thing[:3], thing.point) for thing in example.things]
            for conversation in example.conversations:
                ((question, answer),) = scene_truth.written(conversation)
                assert scene_truth.answers(question, things) == [answer]
                counts[conversation[0].kind] = counts.get(conversation[0].kind, 0) + 1
    assert set(counts) == {"what", "where", "is"}
    assert min(counts.values()) >= 18


def test_rows_are_a_pure_function_of_seed_and_number_in_each_form(pictures):
    for form, points in ((scene_text.Numbers(), 0), (scene_text.Regions(), 7), (scene_text.Embedded(), 0)):
        one = data(pictures, "refs.jsonl", form=form, region_points=points)
        whole = one.batches(6, seed=3)[2]
        assert whole["images"].shape == (6, 80, 80, 3)
        assert "cells" not in whole
        halves = [one.batches(6, 3, rows)[2] for rows in (slice(0, 2), slice(2, 6))]
        for name, x in whole.items():
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)
        if points:
            np.testing.assert_array_equal((whole["input_ids"] == REGION).sum(1), whole["region_count"])
        if isinstance(form, scene_text.Embedded):
            np.testing.assert_array_equal((whole["input_ids"] == BOXES).sum(1), whole["place_count"])
        assert whole["place_count"].min() >= 1
    numbers = data(pictures).batches(6, seed=3)[0]
    for ids, places, count in zip(*(numbers[k] for k in ("input_ids", "places", "place_count")), strict=True):
        text = scene_text.tokenizer().decode([i for i in ids.tolist() if i], skip_special_tokens=False)
        found = coordinates.Plain(precision=2).read_boxes(text)
        np.testing.assert_allclose(np.array(found)[:, 0], places[:count], atol=0.0051)


def test_splits_share_no_picture(pictures):
    one = data(pictures, validation=0.3)
    train, validation = ({p.file for p in one._pictures(split)} for split in coco.SPLITS)
    assert len(train) == 7
    assert len(validation) == 3
    assert train.isdisjoint(validation)
    batch = one.batches(7, 0)[0]  # an epoch
    assert len(np.unique(batch["images"], axis=0)) == 7
    asked = [(example, said) for example in one.examples("train", 2) for said in example.conversations]
    assert one.prompts(*zip(*asked, strict=True))["attention_mask"][:, -1].all()  # as evals ask


def test_polygons_and_boxes_without_a_mask(pictures):
    def change(contents):
        first, second = contents["annotations"][:2]
        first |= {"bbox": [10, 4, 20, 8], "segmentation": [[10, 4, 30, 4, 30, 12, 10, 12]]}
        del second["segmentation"]

    (first, second, *_), size = changed(pictures, change), (WIDTH, HEIGHT)
    wanted = np.zeros((HEIGHT, WIDTH), bool)
    wanted[4:12, 10:30] = True
    np.testing.assert_array_equal(first.mask(*size), wanted)
    x0, y0, x1, y1 = (int(x) for x in second.box)
    assert second.mask(*size).sum() == (x1 - x0) * (y1 - y0)
    assert second.mask(*size)[y0:y1, x0:x1].all()
    for nothing in ([], [[]]):  # as files without masks say it
        (one, *_) = changed(pictures, lambda c, m=nothing: c["annotations"][0].update(segmentation=m))
        np.testing.assert_array_equal(one.mask(*size), wanted)
    tiny = np.zeros((300, 200), bool)
    tiny[7, 9] = True
    small = coco.in_square(tiny, np.array([59, 7, 60, 8]) / 300, 16)
    assert np.argwhere(small).tolist() == [[0, 3]]


def test_a_mask_without_a_pixel_is_that_of_the_box(pictures):
    thin, size = [[10.1, 10.1, 10.3, 10.1, 10.3, 10.3]], [HEIGHT, WIDTH]
    for nothing in (thin, {"size": size, "counts": [HEIGHT * WIDTH]}):
        edit = {"bbox": [10, 4, 20, 8], "segmentation": nothing}
        (one, *_) = changed(pictures, lambda c, e=edit: c["annotations"][0].update(e))
        mask = one.mask(WIDTH, HEIGHT)
        assert mask[4:12, 10:30].all()
        assert mask.sum() == 8 * 20
    changed(pictures, lambda c: c["annotations"][0].update(bbox=[10.1, 10.1, 0.2, 0.2], segmentation=thin))
    assert all(mask.any() for example in all_examples(data(pictures)).values() for mask in example.masks)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_headers_tell_the_size_of_a_picture_that_is_turned(pictures, kind):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter
    Image.new("RGB", (HEIGHT, WIDTH), "red").save(pictures / f"turned.{kind}", exif=turned)
    with (pictures / "refs.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"image": f"turned.{kind}", "expression": "red", "box": [70, 2, 80, 64]}))
    (picture,) = (p for p in coco.read(str(pictures), "refs.jsonl")[0] if p.file == f"turned.{kind}")
    assert coco.open_picture(pictures, picture).size == (WIDTH, HEIGHT)


def test_crowds_are_neither_asked_about_nor_counted(pictures):
    def change(contents):
        for one in contents["annotations"]:
            one["iscrowd"] = 1

    changed(pictures, change)
    for example in all_examples(data(pictures, kinds=("what", "where", "count", "is"))).values():
        assert {turn.kind for (turn,) in example.conversations} <= {"is"}
        assert {turn.answer for (turn,) in example.conversations} <= {"no"}


def absent(one, questions):
    """What is asked about each picture and answered with no, beside all names of what is there."""
    for split in coco.SPLITS:
        for picture, example in zip(one._pictures(split), one.examples(split, 99, ("is",) * questions), strict=True):
            here = {name for thing in picture.things for name in thing.names}
            yield here, {turn.question for (turn,) in example.conversations if turn.answer == "no"}


def test_what_is_there_by_any_of_its_names_is_never_called_absent(pictures):
    for annotations in ("annotations.json", "refs.jsonl"):
        found = list(absent(data(pictures, annotations), 60))
        assert len(found) == 10
        for here, asked in found:
            assert asked
            assert not asked & {question.format(name) for question in scene_turns.IS for name in here}


def test_where_all_that_has_a_name_is_in_the_picture_nothing_is_called_absent(pictures):
    def change(contents):
        for one in contents["annotations"]:
            one["category_id"] = 0

    changed(pictures, change)
    assert [asked for _, asked in absent(data(pictures), 6)] == [set()] * 10


@pytest.mark.parametrize(
    ("names", "called"),
    [
        ((("cat", "black cat"), ("cat", "white cat")), {("black cat", "white cat")}),
        ((("cat", "tabby"), ("cat",)), {("cat", "cat")}),
        ((("cat", "tabby"), ("dog",)), {("cat", "dog"), ("tabby", "dog")}),
        ((), {()}),
    ],
)
def test_a_name_that_two_things_bear_is_nowhere_said_to_be_of_one(names, called):
    things = [coco.Labelled(own, (0, 0, 1, 1), None, False, "") for own in names]
    assert {tuple(coco.called(things, np.random.default_rng(seed))) for seed in range(20)} == called


def test_a_box_that_hangs_over_by_a_pixel_is_cut(pictures):
    things = changed(pictures, lambda c: c["annotations"][0].update(bbox=[70, 60, 10.8, 4.5]))
    np.testing.assert_allclose(coco._inside(things[0], WIDTH, HEIGHT), [70, 60, 80, 64])


def changed(pictures, change):
    path = pictures / "annotations.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))
    coco.read.cache_clear()
    found, _ = coco.read(str(pictures), "annotations.json")
    return [thing for picture in found for thing in picture.things]


def first(**fields):
    return lambda contents: contents["annotations"][3].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "not in COCO's format: it must be an object with a list 'categories'"),
        (lambda c: c["images"][2].pop("width"), r"images\[2\] must be an object with 'width', it has id, file_name"),
        (lambda c: c["images"][2].update(height=0), r"images\[2\]: width and height must be .* got 80 and 0"),
        (lambda c: c["images"][2].update(id=100), r"images\[2\]\.id: 100 is the id of an image before"),
        (lambda c: c["images"][2].update(file_name=""), r"images\[2\]\.file_name must be the name of a file"),
        (lambda c: c["categories"][1].update(name="<image>"), r"categories\[1\]\.name: '<image>' holds <image>"),
        (lambda c: c["categories"][1].update(name=" "), r"categories\[1\]\.name must be a text, got ' '"),
        (lambda c: c["annotations"].insert(3, []), r"annotations\[3\] must be an object with 'image_id', it has \[\]"),
        (first(image_id=7), r"annotations\[3\]\.image_id: 7 is the id of none of the image entries"),
        (first(category_id=[1]), r"annotations\[3\]\.category_id must be a number or a text, got \[1\]"),
        (first(bbox=[1, 2, 3]), r"annotations\[3\]\.bbox must be four numbers, got \[1, 2, 3\]"),
        (first(bbox=[1, 2, 3, None]), r"annotations\[3\]\.bbox \[1, 2, 3, None\] is reversed or not finite"),
        (first(bbox=[1, 2, 3, 10**400]), r"annotations\[3\]\.bbox must be four numbers"),
        (first(bbox=[9, 2, -3, 4]), r"annotations\[3\]\.bbox .* is reversed .* \(x, y, width, height\)"),
        (first(bbox=[70, 2, 20, 4]), r"annotations\[3\]: box.* \(70, 2, 90, 6\) is not within 80 x 64"),
        (first(box=[1, 2, 3, 4]), r"annotations\[3\]: give either box, .* or bbox"),
        (first(segmentation=5), r"annotations\[3\], its mask: a mask is a list of polygons or run lengths"),
        (first(segmentation={"size": 4, "counts": [20]}), r"annotations\[3\], its mask: the mask is of .* size 4,"),
        (first(segmentation={"size": [64, 80], "counts": 5}), r"annotations\[3\], its mask: counts must be"),
        (first(segmentation=[[1, 2, 3, 4]]), r"annotations\[3\], its mask: polygon 0 must be"),
        (first(segmentation={"size": [80, 64], "counts": [0, 5120]}), r"size \[80, 64\], this one's is \[64, 80\]"),
        (first(segmentation={"size": [64, 80], "counts": [9]}), r"add up to 64 x 80 = 5120, got 1 that add up to 9"),
        (lambda c: c.update(annotations=[]), r"annotations\.json annotates nothing"),
        (lambda c: c.update(images=c["images"][:1], annotations=[]), "has 1 pictures; at least 2 are needed"),
    ],
)
def test_what_is_wrong_with_coco_is_named(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        changed(pictures, change)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"box": [1, 2, 3, 4], "expression": "x"}, "line 3 must be an object with 'image', it has box, expression"),
        ({"image": "files/0.png", "box": [1, 2, 3, 4]}, "line 3: give either an expression or a list of sentences"),
        ({"image": "files/0.png", "sentences": [], "box": [1, 2, 3, 4]}, r"line 3\.sentences must be a list of texts"),
        (
            {"image": "files/0.png", "sentences": ["x", 3], "box": [1, 2, 3, 4]},
            "line 3, sentence 1 must be a text, got 3",
        ),
        (
            {"image": "files/0.png", "expression": "\ud800", "box": [1, 2, 3, 4]},
            "line 3, sentence 0: .* half of a surrogate pair",
        ),
        ({"image": "files/0.png", "expression": "x"}, r"line 3: give either box, \[x0, y0, x1, y1\], or bbox"),
        ({"image": "files/0.png", "expression": "x", "box": [9, 2, 3, 4]}, r"line 3\.box .* is reversed"),
        ([1], "line 3: expected an object like"),
    ],
)
def test_what_is_wrong_with_expressions_is_named(pictures, record, message):
    lines = (pictures / "refs.jsonl").read_text().split("\n")
    lines[2] = json.dumps(record)
    (pictures / "refs.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        data(pictures, "refs.jsonl").examples("train", 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"box": [1, 2, 90, 4]}, r"line 1: box .*\(1, 2, 90, 4\) is not within 80 x 64"),
        ({"mask": [[1, 2, 3, 4]]}, "line 1, its mask: polygon 0 must be"),
        ({"mask": {"size": [80, 64], "counts": [5120]}}, r"line 1, its mask: the mask is of .* size \[80, 64\]"),
    ],
)
def test_what_needs_the_size_of_the_picture_is_named_at_the_start(pictures, record, message):
    lines = [json.loads(line) for line in (pictures / "refs.jsonl").read_text().split("\n")]
    lines[0] |= record
    (pictures / "refs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=message):
        data(pictures, "refs.jsonl").batches(2, 0)


def test_missing_and_broken_files_are_named(pictures, tmp_path):
    for path in ("", str(tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match="--set data.path=FOLDER"):
            CocoData(path=path).examples("train", 1)
    with pytest.raises(FileNotFoundError, match=r"no annotations at .*; the folder has annotations\.json, refs\.jsonl"):
        data(pictures, "other.json").batches(2, 0)
    with pytest.raises(ValueError, match="no split 'test' of annotated pictures"):
        data(pictures).examples("test", 1)
    Image.new("RGB", (64, 80)).save(pictures / "files" / "0.png")
    wrong_size = r"0\.png has 64 x 80 pixels, but .*images\[0\] says 80 x 64"
    with pytest.raises(ValueError, match=wrong_size):
        data(pictures).batches(2, 0)
    (pictures / "files" / "0.png").write_bytes(b"no picture")
    for annotations, where in (("annotations.json", r"images\[0\]"), ("refs.jsonl", "line 1")):
        with pytest.raises(ValueError, match=rf"0\.png \(.*{where}\) can't be read as a picture"):
            data(pictures, annotations).batches(2, 0)
    picture = coco.Picture("files/1.png", (64, 80), (), "images[1]")  # exchanged since
    with pytest.raises(ValueError, match=r"1\.png has 80 x 64 pixels, but images\[1\] says 64 x 80"):
        coco.open_picture(pictures, picture)
    (pictures / "files" / "0.png").unlink()
    coco.read.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"images\[0\] names the picture files/0\.png, but there is no"):
        data(pictures).examples("train", 1)
    (pictures / "annotations.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"annotations\.json, line 1, column 13: not JSON"):
        data(pictures).examples("train", 1)
