import json

from nerve_fast.bench.pages import compare


def test_comparison_tells_change_from_noise(document):
    after = json.loads(json.dumps(document))
    after["machine"]["torch"] = "99"
    after["rows"][0].update(seconds=0.4, low=0.39, high=0.41)
    after["rows"][1].update(seconds=0.81, low=0.8, high=0.82)
    after["rows"][2].update(seconds=0.5, low=0.4, high=1.2)
    del after["rows"][5]
    lines = compare.compare(document, after)
    assert lines[0].endswith(", then 99")
    assert lines[1:] == [
        " 2.00 times slower: walk, blocked dense, N = 4,096, softmax, float32",
        "3 rows within noise, 1 changed",
        "1 rows only in the first",
    ]


def test_single_rounds_need_more(document, row):
    before, after = row("a", 1.0), row("a", 1.2)
    assert compare.differs(before, after)
    before.rounds = 1
    assert not compare.differs(before, after)
    assert compare.differs(before, row("a", 1.4))
