import pytest

from mmjax.text import prompts


def test_names_go_into_templates_name_by_name():
    assert prompts.fill(["cat", "dog"], ("{}", "a {}!")) == ["cat", "a cat!", "dog", "a dog!"]


@pytest.mark.parametrize("templates", [prompts.NAME, prompts.PICTURES, prompts.PHOTOS])
def test_each_list_fits_any_name(templates):
    filled = prompts.fill(["{odd} name"], templates)
    assert len(set(filled)) == len(templates)
    assert all("{odd} name" in sentence for sentence in filled)


def test_a_template_needs_one_place_for_the_name():
    with pytest.raises(ValueError, match="a picture"):
        prompts.fill(["cat"], ("a picture",))
    with pytest.raises(ValueError, match="no templates"):
        prompts.fill(["cat"], ())
