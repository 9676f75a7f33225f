import pytest

from nerve_fast import InputError
from nerve_fast.datasets import NAMES, VOCABULARIES, Dataset, competing, said, words
from nerve_fast.datasets.vocabulary import classes_of

SIZES = {
    "voc21": 21,
    "voc20": 20,
    "pc60": 60,
    "pc59": 59,
    "coco-object": 81,
    "coco-stuff": 171,
    "ade20k": 150,
    "cityscapes": 19,
}


def dataset(name):
    classes = classes_of(name)
    return Dataset(name, classes, classes[0] == "background", ())


def of(name, vocabulary):
    return words(dataset(name), vocabulary)


def test_the_data_sets_of_the_field_and_their_classes():
    assert {name: len(classes_of(name)) for name in NAMES} == SIZES
    for name in NAMES:
        assert len(set(classes_of(name))) == SIZES[name]
        for vocabulary in VOCABULARIES:
            assert len(of(name, vocabulary)) == SIZES[name]


def test_sets_that_differ_in_the_background_alone():
    for larger, smaller in (("voc21", "voc20"), ("pc60", "pc59")):
        for vocabulary in VOCABULARIES:
            assert of(larger, vocabulary)[1:] == of(smaller, vocabulary)
    assert classes_of("coco-object")[1:] == classes_of("coco-stuff")[:80]


@pytest.mark.parametrize(
    ("name", "label", "plain", "glued"),
    [
        ("voc20", 15, "potted plant", "pottedplant"),
        ("pc60", 55, "tv monitor", "tvmonitor"),
        ("coco-stuff", 9, "traffic light", "trafficlight"),
        ("coco-stuff", 133, "playing field", "playingfield"),
        ("coco-stuff", 84, "building-other", "building-other"),
        ("ade20k", 44, "chest of drawers", "chestofdrawers"),
        ("ade20k", 149, "flag", "flag"),
        ("cityscapes", 6, "traffic light", "trafficlight"),
    ],
)
def test_the_fields_lists_glue_names(name, label, plain, glued):
    assert of(name, "plain")[label] == (plain,)
    assert of(name, "sclip")[label] == of(name, "clearclip")[label] == (glued,)


def test_coco_object_is_not_glued():
    assert (
        of("coco-object", "sclip")[10] == of("coco-object", "clearclip")[10] == ("traffic light",)
    )


def test_voc_has_ships_and_tables():
    for vocabulary in ("sclip", "clearclip"):
        assert of("voc20", vocabulary)[3] == ("ship",)
        assert of("voc20", vocabulary)[10] == ("table",)
    assert of("voc20", "plain")[3] == ("boat",)
    assert of("pc59", "sclip")[7] == ("boat",)
    assert of("coco-object", "sclip")[61] == ("dining table",)


def test_proxyclip_has_words_of_background_and_no_others():
    assert of("voc21", "proxyclip")[0] == of("voc21", "sclip")[0]
    words_of_coco = of("coco-object", "proxyclip")[0]
    assert len(set(words_of_coco)) == 17
    assert words_of_coco[13:] == ("cloud", "floor", "hill", "rail")
    assert of("coco-object", "proxyclip")[1] == of("voc20", "proxyclip")[14] == ("person",)
    assert of("voc20", "proxyclip")[3] == ("ship",)
    assert of("voc21", "proxyclip")[20] == ("tvmonitor",)


def test_clipers_own_words():
    voc = of("voc21", "cliper")
    assert len(set(voc[0])) == 25
    assert (voc[0][0], voc[0][-1]) == ("ground", "sign")
    assert [voc[i] for i in (3, 4, 9, 11, 15, 20)] == [
        ("bird avian",),
        ("boat",),
        ("chair seat",),
        ("diningtable",),
        ("person with clothes, people, human",),
        ("tvmonitor screen",),
    ]
    coco = of("coco-object", "cliper")
    assert len(set(coco[0])) == 23
    assert "keyboard" not in coco[0]
    assert [coco[i][0] for i in (1, 4, 5, 10, 57, 58, 59, 61, 63)] == [
        "person with cloth people human",
        "motorbike",
        "aeroplane",
        "traffic light",
        "chair seat",
        "sofa",
        "pottedplant",
        "diningtable",
        "tvmonitor",
    ]
    assert of("ade20k", "cliper")[12] == ("person with cloth people human",)
    assert of("cityscapes", "cliper")[6] == ("traffic light",)
    assert of("coco-stuff", "cliper") == of("coco-stuff", "sclip")


def test_clipers_background_competes_where_there_is_none():
    assert competing(dataset("voc20"), "cliper") == of("voc21", "cliper")[0]
    for name in ("pc59", "coco-stuff", "ade20k", "cityscapes"):
        assert competing(dataset(name), "cliper") == ("background",)
        assert competing(dataset(name), "sclip") == ()
    assert competing(Dataset("voc21", classes_of("voc21"), True, ()), "cliper") == ()


def test_background_is_26_words_in_two_sets_of_sclip():
    voc, coco = of("voc21", "sclip")[0], of("coco-object", "sclip")[0]
    assert voc == coco
    assert len(set(voc)) == 26
    assert (voc[0], voc[9], voc[25]) == ("sky", "sands", "fence")
    assert of("pc60", "sclip")[0] == ("background",)
    for name in ("voc21", "coco-object", "pc60"):
        assert of(name, "clearclip")[0] == of(name, "plain")[0] == ("background",)


def test_people_and_screens_have_more_words_in_sclip():
    person = of("voc21", "sclip")[15]
    assert len(person) == 7
    assert person[:2] == ("person", "person in shirt")
    assert of("coco-object", "sclip")[1] == (*person, "body")
    assert of("voc20", "sclip")[19] == (
        "television monitor",
        "tv monitor",
        "monitor",
        "television",
        "screen",
    )
    assert of("voc20", "clearclip")[14] == ("person",)
    assert of("voc20", "clearclip")[19] == ("tvmonitor",)
    for name, label in (("coco-stuff", 0), ("ade20k", 12), ("cityscapes", 11)):
        assert of(name, "sclip")[label] == ("person",)


def test_other_data_sets_have_their_own_words_only():
    own = Dataset("folder", ("cat", "dog"), False, (), (("cat", "kitten"), ("dog",)))
    assert words(own, "plain") == (("cat", "kitten"), ("dog",))
    with pytest.raises(InputError, match="vocabulary is 'sclip'; the data set folder has only"):
        words(own, "sclip")


def test_an_unknown_vocabulary_is_refused():
    with pytest.raises(InputError, match="is 'clip'; expected one of plain, sclip, clearclip"):
        words(dataset("voc21"), "clip")


def test_systems_name_some_classes_of_their_own():
    assert [of("voc21", "groupvit")[label] for label in (11, 16, 20)] == [
        ("table",),
        ("plant",),
        ("monitor",),
    ]
    assert of("pc60", "groupvit")[1] == ("airplane",)
    assert of("voc21", "groupvit")[1] == ("aeroplane",)
    assert [of("voc21", "clip-diy")[label] for label in (11, 16, 20)] == [
        ("diningtable",),
        ("potted plant",),
        ("tv/monitor",),
    ]
    assert of("voc20", "pixelclip")[10] == of("pc59", "pixelclip")[49] == ("diningtable",)
    assert of("voc20", "pixelclip")[15] == ("pottedplant",)


def test_iseg_looks_for_a_class_by_one_name_and_says_another():
    voc, coco = (dict(said(dataset(name), "iseg")) for name in ("voc21", "coco-object"))
    assert (voc["aeroplane"], voc["pottedplant"], voc["tvmonitor"], voc["diningtable"]) == (
        "plane",
        "potted [plant]",
        "tv [monitor]",
        "dining table",
    )
    assert voc["person"] == "person"
    assert coco["person"] == "people"
    halves = [name for name in coco.values() if "[" in name]
    assert halves == [
        "traffic [light]",
        "fire [hydrant]",
        "baseball [bat]",
        "baseball [glove]",
        "tennis [racket]",
        "wine [glass]",
        "potted [plant]",
        "tv [monitor]",
    ]
    assert [*coco] == [synonyms[0] for synonyms in of("coco-object", "iseg")[1:]]
    assert {"motorbike", "aeroplane", "sofa", "pottedplant", "diningtable", "tvmonitor"} < {*coco}
    context = said(dataset("pc60"), "iseg")
    # In the order of its authors: the classes of VOC first.
    assert [name for name, _ in context][:2] + [name for name, _ in context][19:22] == [
        "aeroplane",
        "bicycle",
        "tvmonitor",
        "bag",
        "bed",
    ]
    assert sorted(name for name, _ in context) == sorted(
        synonyms[0] for synonyms in of("pc60", "iseg")[1:]
    )
    other = {name: called for name, called in context if name != called}
    assert other == {
        "aeroplane": "plane",
        "pottedplant": "plant",
        "tvmonitor": "monitor",
        "computer": "laptop",
        "bedclothes": "bedding",
    }
    assert said(dataset("voc21"), "car") == ()


def test_names_of_the_background_compete_in_iseg():
    for name, count in (("voc21", 25), ("pc60", 13), ("coco-object", 23)):
        words_of_background = competing(dataset(name), "iseg")
        assert len(set(words_of_background)) == count
        assert words_of_background == of(name, "iseg")[0]
