"""Shading of words in a terminal."""

from bilstm_attn.explain.text_shading import shade_words


def test_control_characters_do_not_shift_the_shades_of_words():
    text = "good\r\nbad\x07 end"
    shaded = shade_words(text, [(0, 4), (6, 9), (11, 14)], [1.0, -0.5, 0.25], signed=True)
    assert len(shaded.plain) == len(text)
    assert [shaded.plain[slice(*span[:2])] for span in shaded.spans] == ["good", "bad", "end"]
