"""Class names of every script are drawn with the available fonts; what none has is logged once."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detrkit.structures import Detections
from detrkit.visualization import fonts
from detrkit.visualization.captions import caption_size, draw_caption
from detrkit.visualization.fonts import Font, join_arabic, lay_out, visual_order

# scripts that DejaVu Sans has, which is part of matplotlib
WORDS = [
    "Übung", "łódź", "chó", "tiếng Việt", "naïve…", "собака", "σκύλος", "შინაური", "շուն", "כלב", "כָּלֵב", "كلب", "سگ",
    "e\u0301te\u0301", "Ωμ", "5 €", "½ m²",
]  # fmt: skip


def signs(text: str) -> list[str]:
    return [sign for sign in text if not sign.isspace()]


def drawn(text: str, size: int = 20) -> np.ndarray:
    image = Image.new("L", (200, 60))
    Font(size).draw(ImageDraw.Draw(image), (10, 40), text, "white")
    return np.asarray(image)


@pytest.mark.parametrize("word", WORDS)
def test_every_letter_is_drawn(word: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        runs = lay_out(f"{word} 0.95", 19)
    assert not caplog.records
    for run in runs:
        missing = bytes(run.font.getmask("\U0010ffff"))
        assert all(bytes(run.font.getmask(sign)) != missing for sign in signs(run.text))


@pytest.mark.parametrize("text", ["cat 0.95", "Übung 0.95", "כלב 0.62", "كلب كبير 0.5", "gÅy", ""])
def test_captions_lie_within_their_background(text: str) -> None:
    font = Font(16)
    image = Image.new("RGB", (220, 60))
    draw_caption(ImageDraw.Draw(image), (10, 10), text, (0, 0, 255), font)
    alone = Image.new("RGB", (220, 60))
    width, height = caption_size(text, font)
    ImageDraw.Draw(alone).rectangle((10, 10, 10 + width, 10 + height), fill=(0, 0, 255))
    changed = (np.asarray(image) != np.asarray(alone)).any(-1)
    inside = (np.asarray(alone)[..., 2] > 0).astype(bool)
    assert not (changed & ~inside).any()
    assert changed.any() == bool(text)


def test_plain_names_keep_pillows_font_and_others_have_one_font_for_name_and_score() -> None:
    assert len(lay_out("cat 0.95", 20)) == 1
    assert lay_out("cat 0.95", 20)[0].font.getname()[0] != "DejaVu Sans"
    assert {run.font.getname()[0] for run in lay_out("łódź 0.95", 20)} == {"DejaVu Sans"}


def test_scores_stand_to_the_right_of_names_in_scripts_from_right_to_left() -> None:
    name, score = lay_out("כלב גדול (א) 0.95", 20)
    assert score.text == " 0.95"
    assert name.left == 0
    assert score.left == pytest.approx(name.font.getlength(name.text, direction=name.direction))


def test_without_raqm_the_picture_of_hebrew_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_basic_layout(text: str) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(fonts, "_has_raqm", lambda: False)
            fonts._load.cache_clear()
            lay_out.cache_clear()
            try:
                return drawn(text)
            finally:
                fonts._load.cache_clear()
                lay_out.cache_clear()

    for word in ("כלב", "كلب", "כלב 2 גדול"):
        basic = in_basic_layout(word)
        assert basic.any()
        if fonts._has_raqm():  # equal but for kerning
            assert abs(basic.astype(int).sum() - drawn(word).astype(int).sum()) < 0.1 * basic.astype(int).sum()
    assert visual_order("כלב") == "בלכ"
    assert visual_order("(א) 12.5 ב") == "ב 12.5 (א)"
    assert join_arabic("كلب") == "\ufedb\ufee0\ufe90"  # initial, medial, final
    assert join_arabic("دب") == "\ufea9\ufe8f"  # dal joins no letter after it
    assert join_arabic("abc כ") == "abc כ"


@pytest.mark.parametrize(
    ("word", "script"), [("\U0001f9ff\U0001f9fe", "symbols"), ("\U00013000\U00013001", "EGYPTIAN")]
)
def test_a_missing_script_is_logged_once_and_drawn_as_boxes(
    word: str, script: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = fonts._font_paths()[:1]
    monkeypatch.setattr(fonts, "_font_paths", lambda: packaged)  # as if no other was installed
    fonts._report_missing.cache_clear()
    with caplog.at_level(logging.WARNING):
        for size in (21, 22):
            assert drawn(word, size).any()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"({script}) are drawn as boxes" in message
    assert "install one" in message


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\udcff", "\ufeff", "👩\u200d🚒", "a" * 300, "\u202eabc"])
def test_odd_names_are_drawn_without_an_error(name: str) -> None:
    one = torch.tensor([0])
    detections = Detections(torch.tensor([[10.0, 20, 90, 60]]), torch.tensor([0.5]), one, one, (name,))
    assert detections.draw(Image.new("RGB", (120, 80))).size == (120, 80)


def test_pictures_of_names_in_other_scripts_differ_from_boxes() -> None:
    """Two words of one length are not the same row of boxes."""
    for first, second in (("собака", "кошшка"), ("כלב", "דוב"), ("Ω", "Σ")):
        assert not np.array_equal(drawn(first), drawn(second))
