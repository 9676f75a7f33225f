import pytest

from nerve_fast import InputError
from nerve_fast.utils.labels import parse_labels


def test_white_space_and_spelling_are_normalised():
    assert parse_labels([" red \t ball ", "cafe\u0301"]) == [["red ball"], ["caf\u00e9"]]


def test_commas_separate_synonyms():
    assert parse_labels(["cat, kitten ,tabby", "dog"]) == [["cat", "kitten", "tabby"], ["dog"]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels is empty; expected at least one class name"),
        (["cat", ""], "label 2 is ''; it holds an empty name"),
        (["cat,"], "label 1 is 'cat,'; it holds an empty name"),
        (["cat", "dog", "Cat"], "the name 'Cat' stands twice, in label 1 and 3"),
        (["cat, kitten", "dog, cat"], "the name 'cat' stands twice, in label 1 and 2"),
        (["red ball", "red  ball"], "stands twice"),
        (["caf\u00e9", "cafe\u0301"], "stands twice"),
        (["\u200b"], "it holds an empty name"),
        (["cat\ndog"], "it holds a line break or another character that is not text"),
        (["\udcff"], "not text"),
        (["cat, cat"], "the name 'cat' stands twice, in label 1;"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        parse_labels(labels)


@pytest.mark.parametrize("labels", ["cat", [1, 2], [None], None, {"cat", "dog"}, iter(["cat"])])
def test_labels_are_a_list_of_strings(labels):
    with pytest.raises(TypeError, match="expected a list of strings"):
        parse_labels(labels)
