"""A TFDS builder of coloured squares for the tests; TFDS wants builders in a package of their own."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

COLOURS = {"dark_red": (150, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 250)}


class Captioned(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "grey": tfds.features.Image(shape=(9, 9, 1)),
            "caption": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(COLOURS)),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            name = list(COLOURS)[i % 3]
            picture = np.full((10 + i, 12, 3), COLOURS[name], np.uint8)
            yield (
                i,
                {
                    "image": png(picture),
                    "grey": png(picture[:9, :9, 0] + 3),
                    "caption": f"größe {i} on the left",
                    "label": name,
                },
            )


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    file.seek(0)
    return file
