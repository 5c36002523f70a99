"""Build the embedded emoji pack from the artists' npm packages: WebP atlases and two JSON files in `mmjax/data/assets`.

    pip install resvg-py==0.5.0 && python -m mmjax.data.build_emoji_pack --downloads DIR [--contact-sheets DIR]

Missing packages are fetched with `npm pack` at pinned versions into DIR; the same versions of pillow and resvg-py give
the same bytes. A concept is a code point sequence of emoji-datasource that is no flag, component or skin tone, that
CLDR names itself (derived names are composed of parts: families, hair styles) and that
Noto, Fluent 3D and Twemoji draw.

Drawings meet concepts by code point: files are named so, or the set's `chars.json` says so. Fluent colour shares its
icon names with Fluent flat. Noto v1, EmojiOne and FxEmoji carry names only: a drawing is taken if its name is one that
another set, Unicode or emoji-datasource gives the concept, or stands in the tables of `emoji_matches.py`, made by eye.
"""

import argparse
import collections
import functools
import gzip
import io
import json
import math
import pathlib
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from mmjax.data import emoji_matches

PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "cldr-annotations-full": "48.2.0",
    "@lobehub/fluent-emoji-anim-1": "1.0.0",  # of build_clip_pack.py
}
SIZE = 64  # side of a drawing in the atlas
SUPERSAMPLE = 4  # SVGs are drawn this much larger and averaged down
COLUMNS = 40
LANGUAGES = ("de", "es", "fr", "ja", "zh")
ASSETS = pathlib.Path(__file__).parent / "assets"
WEBP = {"quality": 92, "method": 6, "alpha_quality": 100}  # without loss the pack would be 2.5 times larger


def tarball(folder: pathlib.Path, package: str) -> pathlib.Path:
    """The package's archive in `folder`, fetched if it is not there."""
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{PACKAGES[package]}.tgz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{PACKAGES[package]}", "--pack-destination", str(folder)], check=True
        )
    return path


def read(folder: pathlib.Path, package: str, pattern: str) -> dict[str, bytes]:
    """Contents of the files whose path below `package/` matches; one pass, because gzip cannot seek."""
    found = {}
    with tarfile.open(tarball(folder, package)) as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if member.isfile() and re.fullmatch(pattern, name):
                found[name] = archive.extractfile(member).read()
    return found


def read_json(folder: pathlib.Path, package: str, name: str):
    return json.loads(read(folder, package, re.escape(name))[name])


def annotations(folder: pathlib.Path, language: str) -> dict[str, dict]:
    """CLDR: text without variation selectors -> {"tts": [name], "default": keywords}."""
    data = read_json(folder, "cldr-annotations-full", f"annotations/{language}/annotations.json")
    return {plain(text): entry for text, entry in data["annotations"]["annotations"].items()}


def plain(text: str) -> str:
    """A code point sequence without U+FE0F, the presentation selector that some sets write and some leave out."""
    return text.replace("\ufe0f", "")


def text_of(code: str) -> str:  # "1f441-fe0f" -> its characters
    return "".join(chr(int(point, 16)) for point in code.split("-"))


def code_key(code: str) -> str:  # the form in which all sets agree
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def slug(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name.replace("’", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")


class Icons:
    """An iconify set: SVG bodies by name, with aliases and (not in all sets) names by code point."""

    def __init__(self, folder: pathlib.Path, name: str):
        package = f"@iconify-json/{name}"
        self.set = read_json(folder, package, "icons.json")
        characters = read_json(folder, package, "chars.json")
        self.by_code = {code_key(code): icon for code, icon in characters.items()}

    def resolve(self, name: str | None) -> str | None:
        """The icon of that name or alias; aliases that turn or mirror a drawing are left alone."""
        if name in self.set["icons"]:
            return name
        alias = self.set.get("aliases", {}).get(name)
        return self.resolve(alias["parent"]) if alias and set(alias) == {"parent"} else None

    def draw(self, name: str) -> np.ndarray:  # -> uint8 [SIZE SIZE 4]
        import resvg_py  # only needed to build the pack

        icon = self.set["icons"][name]
        left, top, width, height = (
            icon.get(field, self.set.get(field, default))
            for field, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        side = SIZE * SUPERSAMPLE
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{side}" height="{side}">{icon["body"]}</svg>'
        )
        return opened(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)))


def fit(image: Image.Image) -> np.ndarray:
    """Centre on a square and average down to uint8 [SIZE SIZE 4].

    Colours are weighted by alpha, so that edges take no colour from transparent pixels.
    """
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image.convert("RGBA"), ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square, np.float32)
    alpha = pixels[..., 3:] / 255
    premultiplied = np.concatenate([pixels[..., :3] * alpha, alpha], -1)
    channels = [Image.fromarray(np.ascontiguousarray(premultiplied[..., i])) for i in range(4)]  # mode F
    mean = np.stack([np.asarray(channel.resize((SIZE, SIZE), Image.Resampling.BOX)) for channel in channels], -1)
    colour = np.divide(mean[..., :3], mean[..., 3:], out=np.zeros_like(mean[..., :3]), where=mean[..., 3:] > 0)
    return np.concatenate([colour, 255 * mean[..., 3:]], -1).round().clip(0, 255).astype(np.uint8)


def opened(data: bytes) -> np.ndarray:
    return fit(Image.open(io.BytesIO(data)))


def collect_concepts(folder: pathlib.Path, codes_3d: set[str]) -> list[dict]:
    """The concepts in Unicode's order, with what the sets need for finding their drawing."""
    english = annotations(folder, "en")
    twitter = {e["unified"]: e for e in read_json(folder, "emoji-datasource-twitter", "emoji.json")}
    concepts = []
    for entry in sorted(read_json(folder, "emoji-datasource-google", "emoji.json"), key=lambda e: e["sort_order"]):
        code = entry["unified"].lower()
        drawn = entry["has_img_google"] and twitter[entry["unified"]]["has_img_twitter"] and code_key(code) in codes_3d
        cldr = english.get(plain(text_of(code)))
        if drawn and cldr and entry["category"] not in ("Flags", "Component"):
            concepts.append(
                {
                    "code": code,
                    "name": cldr["tts"][0],
                    "keywords": cldr["default"],
                    "group": entry["category"],
                    "subgroup": entry["subcategory"],
                    "file": entry["image"],
                    "other_names": [entry["name"] or "", *(n.replace("_", "-") for n in entry["short_names"])],
                }
            )
    return concepts


def match_names(icons: Icons, concepts: list[dict], coded: list[Icons], table: dict[str, str]) -> list[str | None]:
    """Icon per concept for a set without code points. `table` (CLDR name -> icon, "" = none) overrules."""
    squeezed = {name.replace("-", ""): name for name in (*icons.set["icons"], *icons.set.get("aliases", {}))}
    unknown = set(table) - {c["name"] for c in concepts} | {i for i in table.values() if i and not icons.resolve(i)}
    if unknown:
        raise ValueError(f"emoji_matches.py speaks of concepts or icons that do not exist: {sorted(unknown)}")
    result = []
    for concept in concepts:
        if concept["name"] in table:
            result.append(icons.resolve(table[concept["name"]]))
            continue
        names = [other.by_code.get(code_key(concept["code"])) for other in coded]
        names += [slug(name) for name in (concept["name"], *concept["other_names"])]
        hits = (icons.resolve(squeezed.get(name.replace("-", ""))) for name in names if name)
        result.append(next((hit for hit in hits if hit), None))
    twice = [name for name, count in collections.Counter(filter(None, result)).items() if count > 1]
    if twice:
        raise ValueError(f"one drawing for several concepts, name the right one in emoji_matches.py: {twice}")
    return result


def match_codes(names: Icons, drawings: Icons, concepts: list[dict]) -> list[str | None]:
    return [drawings.resolve(names.by_code.get(code_key(c["code"]))) for c in concepts]


Drawer = Callable[[], np.ndarray]  # () -> uint8 [SIZE SIZE 4]


def find_all(folder: pathlib.Path) -> tuple[list[dict], dict[str, list[Drawer | None]]]:
    """The concepts and, per artist, what draws each of them, or None."""
    three_d = read(folder, "@lobehub/fluent-emoji-3d", r"assets/.*\.webp")
    webp = {code_key(pathlib.PurePath(name).stem): data for name, data in three_d.items()}
    concepts = collect_concepts(folder, set(webp))
    png = {v: read(folder, f"emoji-datasource-{v}", rf"img/{v}/64/.*\.png") for v in ("google", "twitter")}
    drawers = {
        "noto": [functools.partial(opened, png["google"][f"img/google/64/{c['file']}"]) for c in concepts],
        "fluent_3d": [functools.partial(opened, webp[code_key(c["code"])]) for c in concepts],
        "twemoji": [functools.partial(opened, png["twitter"][f"img/twitter/64/{c['file']}"]) for c in concepts],
    }
    noto, twemoji, flat = Icons(folder, "noto"), Icons(folder, "twemoji"), Icons(folder, "fluent-emoji-flat")
    colour, old, one, fx = (Icons(folder, name) for name in ("fluent-emoji", "noto-v1", "emojione", "fxemoji"))
    coded = [flat, twemoji, noto]
    icons = {
        "fluent_color": (colour, match_codes(flat, colour, concepts)),
        "fluent_flat": (flat, match_codes(flat, flat, concepts)),
        "noto_v1": (old, match_names(old, concepts, coded, emoji_matches.NOTO_V1)),
        "emojione": (one, match_names(one, concepts, coded, emoji_matches.EMOJIONE)),
        "fxemoji": (fx, match_names(fx, concepts, coded, emoji_matches.FXEMOJI)),
    }
    for artist, (source, names) in icons.items():
        drawers[artist] = [functools.partial(source.draw, name) if name else None for name in names]
    return concepts, drawers


def atlas(drawings: list[np.ndarray | None]) -> np.ndarray:
    """Cell i, row by row with COLUMNS a row, holds concept i; a missing drawing is a transparent cell."""
    rows = math.ceil(len(drawings) / COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIZE, SIZE, 4), np.uint8)
    for i, drawing in enumerate(drawings):
        if drawing is not None:
            cells[i] = drawing
    return cells.reshape(rows, COLUMNS, SIZE, SIZE, 4).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 4)


def write_words(folder: pathlib.Path, concepts: list[dict], drawers: dict[str, list[Drawer | None]]) -> None:
    """The index, a line per concept, and the names in other languages."""
    lines = []
    for i, concept in enumerate(concepts):
        record = {field: concept[field] for field in ("code", "name", "keywords", "group", "subgroup")}
        record["artists"] = sorted(artist for artist, drawer in drawers.items() if drawer[i])
        lines.append(json.dumps(record, ensure_ascii=False))
    (ASSETS / "emoji.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    names = {}
    for language in LANGUAGES:
        known = annotations(folder, language)
        entries = [known[plain(text_of(c["code"]))] for c in concepts]
        names[language] = [{"name": e["tts"][0], "keywords": e["default"]} for e in entries]
    data = json.dumps(names, ensure_ascii=False).encode()
    (ASSETS / "emoji_languages.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def labelled_sheet(rows: list[tuple[str, list[np.ndarray | None]]], columns: int = 20) -> Image.Image:
    """Cells on white with the row's label under each; None stays grey."""
    cell_height = SIZE + 12
    sheet = Image.new(
        "RGB", (columns * (SIZE + 16), math.ceil(len(rows) / columns) * (cell_height * len(rows[0][1]))), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for i, (label, cells) in enumerate(rows):
        x, y = (i % columns) * (SIZE + 16), (i // columns) * cell_height * len(cells)
        for j, cell in enumerate(cells):
            box = (x, y + j * SIZE)
            if cell is None:
                draw.rectangle((*box, x + SIZE, y + (j + 1) * SIZE), fill="lightgrey")
            else:
                image = Image.fromarray(cell, "RGBA")
                sheet.paste(image, box, image)
        draw.text((x, y + len(cells) * SIZE), label[:13], fill="black")
    return sheet


def write_sheets(folder: pathlib.Path, artist: str, concepts: list[dict], pairs: list[list[np.ndarray | None]]) -> None:
    """Each drawing under Noto's, for the eye; 200 a page."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(c["name"], pair) for c, pair in zip(concepts, pairs, strict=True) if pair[1] is not None]
    for page in range(0, len(rows), 200):
        labelled_sheet(rows[page : page + 200]).save(folder / f"{artist}_{page // 200}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--downloads", type=pathlib.Path, required=True, help="folder of the npm tarballs")
    parser.add_argument("--contact-sheets", type=pathlib.Path, help="also write pictures of every artist here")
    parser.add_argument("--artists", nargs="+", help="draw only these again; the index is always written")
    options = parser.parse_args()
    concepts, drawers = find_all(options.downloads)
    write_words(options.downloads, concepts, drawers)
    reference = [draw() for draw in drawers["noto"]] if options.contact_sheets else []
    for artist in options.artists or drawers:
        drawings = [draw and draw() for draw in drawers[artist]]
        encoded = io.BytesIO()
        Image.fromarray(atlas(drawings)).save(encoded, "WEBP", **WEBP)
        (ASSETS / f"emoji_{artist}.webp").write_bytes(encoded.getvalue())
        if options.contact_sheets:
            write_sheets(
                options.contact_sheets, artist, concepts, [list(p) for p in zip(reference, drawings, strict=True)]
            )
        print(f"{artist}: {sum(drawing is not None for drawing in drawings)} drawings", flush=True)
    total = sum(path.stat().st_size for path in ASSETS.iterdir())
    print(f"{len(concepts)} concepts, {len(drawers)} artists, {total / 1e6:.1f} MB in {ASSETS.name}/")


if __name__ == "__main__":
    main()
