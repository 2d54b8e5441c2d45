"""PCA colours, maps over pictures, sheets and the page."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionkit.analysis.outcome import Table
from fusionkit.analysis.overlay import enlarge, heat, outline, top_mask, unit
from fusionkit.analysis.page import Figure, Section, page
from fusionkit.analysis.pca import Covariance, normalised
from fusionkit.analysis.sheet import Row, Sheet


def test_pca_in_pieces_equals_pca_of_all_tokens() -> None:
    x_BND = torch.randn(6, 20, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    covariance = Covariance(8)
    for piece in x_BND.split(2):
        covariance.add(piece)
    basis = covariance.basis()
    tokens = normalised(x_BND).double().flatten(0, 1)
    centred = tokens - tokens.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = singular**2 / (singular**2).sum()
    assert basis.explained == pytest.approx(shares[:3].tolist(), abs=1e-9)
    assert torch.allclose((basis.directions_DC.T @ directions[:3].T).abs(), torch.eye(3).double(), atol=1e-6)
    assert (basis.directions_DC.gather(0, basis.directions_DC.abs().argmax(0)[None]) > 0).all()


def test_pca_colours_show_a_planted_split_and_do_not_depend_on_the_scale_of_a_token() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 16, generator=generator)
    x_BND = torch.where(torch.arange(12)[:, None] < 6, first, second)[None] + 0.01 * torch.randn(
        1, 12, 16, generator=generator
    )
    covariance = Covariance(16)
    covariance.add(x_BND)
    red = covariance.basis().colours(x_BND)[0, :, 0]
    assert red[:6].std() < 0.02
    assert red[6:].std() < 0.02
    assert (red[:6].mean() - red[6:].mean()).abs() > 0.3
    assert torch.allclose(normalised(x_BND * 100), normalised(x_BND), atol=1e-3)


@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.05, 0.95), st.integers(0, 99), st.booleans())
def test_top_mask_has_the_share_asked_for_even_among_equals(
    height: int, width: int, share: float, seed: int, flat: bool
) -> None:
    values = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    values = np.zeros_like(values) if flat else values
    mask = top_mask(values, share)
    assert mask.sum() == max(1, round(share * values.size))
    assert values[mask].min() >= values[~mask].max(initial=-np.inf)


def test_maps_are_scaled_robustly_and_flat_ones_say_nothing() -> None:
    assert np.all(unit(np.full((4, 4), 3.0, np.float32)) == 0.5)
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values[0, 0] = 1000.0
    assert unit(values)[19, 0] > 0.9, "one outlier does not hide the rest"
    assert enlarge(np.array([[0, 1]], np.float32), (8, 2)).shape == (2, 8)


def test_overlays_show_where_a_map_is_high() -> None:
    photo = Image.new("RGB", (60, 40), (100, 100, 100))
    values = np.zeros((4, 6), np.float32)
    values[:, 5] = 1.0
    warm = np.asarray(heat(photo, values), int)
    assert warm[20, 57].sum() > warm[20, 5].sum() + 150
    shown = np.asarray(outline(photo, values, 0.3), int)
    assert tuple(shown[20, 57]) == (100, 100, 100), "inside as it was"
    assert shown[20, 3].sum() < 200, "outside dimmed"
    assert (shown == (57, 255, 20)).all(-1).any(), "with a line between"


def make_sheet() -> Sheet:
    tile = Image.new("RGB", (50, 30), "red")
    return Sheet("a & b.png", [Row("first", ["photo", "layer 1"], [tile, tile]), Row("second", ["", ""], [tile, tile])])


def test_a_sheet_is_a_png_and_an_svg_with_its_pictures_inside() -> None:
    sheet = make_sheet()
    png = Image.open(io.BytesIO(sheet.png()))
    assert png.size == sheet.size
    assert (
        sum(count for count, colour in png.convert("RGB").getcolors(10**6) or () if colour == (255, 0, 0)) == 4 * 1500
    )
    root = ElementTree.fromstring(sheet.svg())
    names = [child.tag.rpartition("}")[2] for child in root]
    assert names.count("image") == 4
    assert [child.text for child in root if child.tag.endswith("text")] == [
        "a & b.png",
        "first",
        "photo",
        "layer 1",
        "second",
    ]
    assert all(child.attrib["href"].startswith("data:image/png;base64,") for child in root if "href" in child.attrib)


class References(HTMLParser):
    """Everything a page could load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_refers_to_nothing_outside_and_escapes_what_it_is_given() -> None:
    table = Table("<numbers>", [{"layer": 1, "value": 0.123456}, {"layer": 2, "value": None}])
    text = page("<title>", "lead", [Section("s", ["<p>"], [Figure(make_sheet().png(), "<alt>")], [table], "<code>")])
    references = References()
    references.feed(text)
    assert references.found
    assert all(found.startswith("data:") for found in references.found)
    for raw in ("<title>", "<alt>", "<code>", "<numbers>"):
        assert raw not in text.replace("<title>&lt;title&gt;</title>", "")
    assert "0.1235" in text
    assert "http" not in text.replace("http-equiv", "")
