import pytest

from nerve_fast.utils.text import code, markdown, plain, shortened


def test_control_characters_become_escapes():
    assert plain("a\x1b[2Jb\nc\u202ed\x9b\udcff") == r"a\x1b[2Jb\nc\u202ed\x9b\udcff"
    assert plain("a\nb\tc\r", kept="\n\t") == "a\nb\tc" + r"\r"
    assert plain("größe, 名前, é") == "größe, 名前, é"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("**bold**", r"\*\*bold\*\*"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("<script>", r"\<script\>"),
        ("`x`", r"\`x\`"),
        ("_x_ but logit_scale", r"\_x\_ but logit_scale"),
        ("# head", r"\# head"),
        ("&lt;", "&amp;lt;"),
        ("two\nlines", r"two\\nlines"),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text, shown):
    assert markdown(text) == shown


def test_code_holds_backticks():
    assert code("a b") == "`a b`"
    assert code("a`b``c") == "```a`b``c```"
    assert code("`a") == "`` `a ``"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("abc", "abc"),
        ("x" * 300, "x" * 200),
        ("ü" * 150, "ü" * 100),
        ("名" * 100, "名" * 66),
        ("a\udcff\ud800b", "ab"),
    ],
)
def test_the_start_of_a_name_fits_a_number_of_bytes(text, found):
    assert shortened(text, 200) == found
