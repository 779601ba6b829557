import numpy as np
import pytest
import torch
from PIL import Image

from results.figures.gallery import ACROSS, GalleryRow, gallery_figure, picture
from results.figures.panels import save_figure
from results.tables.verdicts import STAR

SERVER = "Server plan: curious (honest but curious)."


def test_pictures_are_clamped_before_they_become_bytes():
    image = torch.tensor([[[-0.2, 0.0, 0.5, 1.0, 1.01, 300.0]]])
    assert picture(image).tolist() == [[0, 0, 128, 255, 255, 255]]


def test_colour_channels_go_last():
    image = torch.zeros(3, 2, 4)
    image[2] = 1
    assert picture(image).shape == (2, 4, 3)
    assert picture(image)[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_shows_its_own_pictures(tmp_path, channels):
    truth = torch.ones(3, channels, 8, 8)
    black = torch.zeros(3, channels, 8, 8)
    black[1] = torch.nan
    rows = [GalleryRow("sign", "leaks", "leaks*", black, [1.0, 1.0, 1.0])]
    path = tmp_path / "gallery.png"
    save_figure(gallery_figure(truth, ["one", "two", "three"], rows, SERVER), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    height, width = pixels.shape
    columns = [round(width - 120 * (0.1 + k + 0.5)) for k in (2, 1, 0)]
    upper, lower = round(120 * 0.55), round(120 * (1.27 + 0.55))
    assert [pixels[upper, c] for c in columns] == [255] * 3
    assert [pixels[lower, c - 10] for c in columns] == [0, 255, 0]  # crossed out, not grey
    assert height > lower


def test_forty_quantizers_fit(tmp_path):
    truth = torch.rand(2, 1, 8, 8)
    rows = [
        GalleryRow(f"q{k}", "not established", "not established*", truth, [0.1, 0.2])
        for k in range(40)
    ]
    save_figure(gallery_figure(truth, ["a", "b"], rows, SERVER), tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as image:
        assert 120 * (1.27 * 41 + 0.1) < image.height < 120 * (1.27 * 41 + 1)


@pytest.mark.parametrize("starred", [True, False])
def test_a_star_is_drawn_and_explained_where_there_is_one(starred):
    truth = torch.rand(2, 1, 8, 8)
    rows = [
        GalleryRow("none", "leaks", "leaks", truth, [0.1, 0.2]),
        GalleryRow("sign", "leaks", "leaks" + "*" * starred, truth, [0.1, 0.2]),
    ]
    drawn = gallery_figure(truth, ["a", "b"], rows, SERVER).axes[0].texts
    texts = [text.get_text() for text in drawn]
    assert "none\nleaks" in texts
    assert ("sign\nleaks*" in texts) is starred
    assert " ".join(texts[-1].split()) == SERVER + f" * {STAR}" * starred


def test_images_of_a_large_batch_continue_below_each_above_its_own(tmp_path):
    count = 2 * ACROSS + 1
    truth = torch.zeros(count, 1, 8, 8)
    truth[-1] = 1
    rows = [GalleryRow("sign", "leaks", "leaks", truth, [k / 100 for k in range(count)])]
    captions = [f"image {k}" for k in range(count)]
    figure = gallery_figure(truth, captions, rows, SERVER)
    placed = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert placed["image 0"][0] == placed[f"image {ACROSS}"][0] == placed["MSE 0.16"][0]
    lines = ["image 0", "MSE 0.01", f"image {ACROSS}", f"MSE 0.{ACROSS}", "image 32", "MSE 0.32"]
    heights = [placed[line][1] for line in lines]
    assert heights == sorted(heights)
    shown = [image.get_array().max() for image in figure.axes[0].images]
    assert [k for k, value in enumerate(shown) if value] == [4 * ACROSS, 4 * ACROSS + 1]
