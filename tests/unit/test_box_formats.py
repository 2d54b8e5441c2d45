"""Box formats of other models: golden texts worked out by hand, strict and lenient parsing, malformed pieces, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit import registry
from fusionkit.blocks.box_tokenizers.frame import BoxFormat, Malformed
from fusionkit.blocks.box_tokenizers.qwen2_5_vl import resized_size
from fusionkit.errors import BoxDecodeError, DataError
from fusionkit.geometry import Box, Point, Size

VGA = Size(640, 480)
BOX = Box(64, 48, 320, 240, "cat")
POINT = Point(320, 120, "eye")
POINTS = json.loads((Path(__file__).parents[1] / "parity" / "goldens" / "point_text_dev.json").read_text())


def make(name: str, **config: Any) -> BoxFormat:
    spec = registry.spec("box_tokenizers", name)
    return registry.factory(spec)(spec.config(**config), None)


# BOX is (0.1, 0.1) to (0.5, 0.5) of the picture, POINT (0.5, 0.25).
GOLDEN = [
    ("pixel_text", BOX, "<box> [64, 48, 320, 240] </box>"),
    ("pixel_text", POINT, "<point> [320, 120] </point>"),
    ("pixel_text", Box(0.5, 1.5, 2.5, 3.5), "<box> [0, 2, 2, 4] </box>"),  # halves to even
    ("molmo_points", POINT, '<point x="50.0" y="25.0" alt="eye">eye</point>'),
    (
        "molmo_points",
        BOX,
        '<points x1="10.0" y1="10.0" x2="50.0" y2="50.0" alt="box of cat">box of cat</points>',
    ),
    ("molmo_points", Point(8, 18), '<point x="1.2" y="3.8" alt=""></point>'),  # 1.25 % and 3.75 % to even
    # 640x480 is resized to 644x476: 64 * 644 / 640 = 64.4, 48 * 476 / 480 = 47.6
    ("qwen2_5_vl", BOX, '{"bbox_2d": [64, 48, 322, 238], "label": "cat"}'),
    ("qwen2_5_vl", POINT, '{"point_2d": [322, 119], "label": "eye"}'),
    ("norm1000", BOX, '{"bbox_2d": [100, 100, 500, 500], "label": "cat"}'),
    ("norm1000", POINT, '{"point_2d": [500, 250], "label": "eye"}'),
    ("norm1000", Point(8, 18), '{"point_2d": [12, 38]}'),  # 12.5 and 37.5 to even
    # 102.3, 102.3, 511.5 to even 512; 255.75
    ("paligemma", BOX, "<loc0102><loc0102><loc0512><loc0512> cat"),
    ("paligemma", POINT, "<loc0256><loc0512> eye"),
    ("qwen_vl", BOX, "<ref>cat</ref><box>(100,100),(500,500)</box>"),  # 99.9, 499.5 up
    ("qwen_vl", POINT, "<ref>eye</ref><box>(500,250)</box>"),  # 249.75
    ("internvl", BOX, "<ref>cat</ref><box>[[100, 100, 500, 500]]</box>"),
    ("internvl", POINT, "<ref>eye</ref><box>[[500, 250]]</box>"),
    ("florence2", BOX, "cat<loc_100><loc_100><loc_500><loc_500>"),
    ("florence2", Box(63.9, 0, 640, 480), "<loc_99><loc_0><loc_999><loc_999>"),  # cut, not rounded
    # 3.2 and 3.2: cell (3, 3); 16 - 1 = 15: cell (15, 15)
    ("kosmos2", BOX, "<phrase>cat</phrase><object><patch_index_0099><patch_index_0495></object>"),
    ("kosmos2", POINT, "<phrase>eye</phrase><object><patch_index_0272></object>"),  # row 8, column 16
    ("kosmos2", Box(0, 0, 640, 480), "<object><patch_index_0000><patch_index_1023></object>"),
    ("kosmos2", Box(640, 480, 640, 480), "<object><patch_index_1023><patch_index_1023></object>"),  # inside the grid
    ("kosmos2", Box(320, 240, 320, 240), "<object><patch_index_0528><patch_index_0528></object>"),  # never crossed
    # 99.9, 99.9, 499.5 to even 500
    ("pix2seq", BOX, "<bin_100><bin_100><bin_500><bin_500> cat"),
    ("pix2seq", Point(320, 120), "<bin_250><bin_500>"),
    # padded by 80 above: (48 + 80) / 640 = 0.2, (240 + 80) / 640 = 0.5
    ("shikra", BOX, "[0.100,0.200,0.500,0.500]"),
    ("shikra", POINT, "[0.500,0.312]"),  # 0.3125 to even
]
FORMATS = sorted({name for name, _, _ in GOLDEN})


@pytest.mark.parametrize(("name", "item", "text"), GOLDEN)
def test_golden_texts(name: str, item: Box | Point, text: str) -> None:
    assert make(name).encode(item, VGA) == text
    parsed = make(name).parse(text, VGA, strict=True)
    assert len(parsed.boxes) == isinstance(item, Box)
    assert len(parsed.points) == isinstance(item, Point)


DECODED = [
    ("pixel_text", "[1, 2, 3, 4]", Box(1, 2, 3, 4)),  # bare, as released for referring expressions
    ("molmo_points", '<points x1="1.5" y1="2.5" x2="50.0" y2="60.0" alt="box">box</points>', Box(9.6, 12, 320, 288)),
    ("qwen2_5_vl", '{"bbox_2d": [0, 0, 322, 476]}', Box(0, 0, 320, 480)),
    ("norm1000", '{"bbox_2d": [1, 0, 1000, 250]}', Box(0.64, 0, 640, 120)),
    ("paligemma", "<loc0000><loc0341><loc1023><loc1023>", Box(640 / 3, 0, 640, 480)),  # k / 1023, not 1024
    ("qwen_vl", "<box>(333,0),(999,999)</box>", Box(640 / 3, 0, 640, 480)),  # k / 999
    ("internvl", "<box>[[0, 1, 1, 3]]</box>", Box(0, 0.48, 0.64, 1.44)),  # small numbers are no shares of 1
    ("florence2", "<loc_0><loc_0><loc_999><loc_999>", Box(0.32, 0.24, 639.68, 479.76)),  # cell centres
    ("kosmos2", "<object><patch_index_0000><patch_index_1023></object>", Box(10, 7.5, 630, 472.5)),  # centres
    ("kosmos2", "<object><patch_index_0000><patch_index_0031></object>", Box(0, 0, 640, 15)),  # one row: edges
    ("kosmos2", "<object><patch_index_0033><patch_index_0033></object>", Box(20, 15, 40, 30)),  # one cell: edges
    ("pix2seq", "<bin_0><bin_333><bin_999><bin_999>", Box(640 / 3, 0, 640, 480)),
    ("shikra", "[0.000,0.125,1.000,0.875]", Box(0, 0, 640, 480)),
    ("shikra", "[0.000,0.000,1.000,1.000]", Box(0, 0, 640, 480)),  # padding belongs to the edge
]


@pytest.mark.parametrize(("name", "text", "expected"), DECODED)
def test_golden_boxes(name: str, text: str, expected: Box) -> None:
    (box,) = make(name).parse(text, VGA).boxes
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((expected.x0, expected.y0, expected.x1, expected.y1))


LENIENT = [
    ("pixel_text", "<box>[1,2, 3 ,4] ,[5.5,6,7,8]</box>", 2),
    ("pixel_text", "<box> [630, 470, 650, 490] </box>", 1),  # beyond the edge
    ("molmo_points", '<point x="10" y="20.25" alt="a">a</point>', 1),
    ("molmo_points", '<point p=123, 456 alt="q">q</point>', 1),
    ("qwen2_5_vl", '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a {b}", "score": 0.5},\n]\n```', 1),
    ("qwen2_5_vl", '[{"label": "a", "bbox_2d": [1.5, 2, 3, 900]}, {"bbox_2d": [1, 2, 3, 4]}', 2),
    ("norm1000", '{"bbox_2d":[5,2,3,4]}', 1),  # swapped corners
    ("paligemma", "<loc0001> <loc0002><loc0003><loc0004>", 1),
    ("qwen_vl", "<box> (1, 2) , (3, 4) </box>", 1),
    ("internvl", "<box>[ [1,2,3,4] ]</box>", 1),
    ("florence2", "cat<loc_9> <loc_0><loc_1><loc_2>", 1),
    ("kosmos2", "<object><patch_index_0099><patch_index_0000></object>", 1),
    ("pix2seq", "<bin_9><bin_0><bin_1><bin_2>", 1),
    ("shikra", "[0.5, 0.5, 0.6, 0.6]", 1),
]


@pytest.mark.parametrize(("name", "text", "count"), LENIENT)
def test_lenient_parsing_takes_what_strict_refuses(name: str, text: str, count: int) -> None:
    parsed = make(name).parse(text, VGA)
    assert len(parsed.boxes) + len(parsed.points) == count
    assert parsed.malformed == ()
    for box in parsed.boxes:
        assert 0 <= box.x0 <= box.x1 <= 640
        assert 0 <= box.y0 <= box.y1 <= 480
    with pytest.raises(BoxDecodeError, match="expect"):
        make(name).parse(text, VGA, strict=True)


MALFORMED = [
    ("pixel_text", "<box> [1, 2, 3] </box>", "<box> [1, 2, 3] </box>"),
    ("pixel_text", "at <box> [1, 2", "<box> [1, 2"),
    ("molmo_points", 'so <point x="101.0" y="20.1" alt="a">a</point>', '<point x="101.0" y="20.1" alt="a">a</point>'),
    ("molmo_points", '<points x1="1.0" y2="2.0" alt="a">a</points>', '<points x1="1.0" y2="2.0" alt="a">a</points>'),
    ("molmo_points", '<point x="1.0"', '<point x="1.0"'),
    ("qwen2_5_vl", '{"bbox_2d": [1, 2, 3]}', '{"bbox_2d": [1, 2, 3]}'),
    ("norm1000", '{"bbox_2d": [1, 2, 3, 1001]}', '{"bbox_2d": [1, 2, 3, 1001]}'),
    ("norm1000", '[{"point_2d": [1, 2', '{"point_2d": [1, 2'),
    ("norm1000", '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": 5}', '{"bbox_2d": [1, 2, 3, 4], "bbox_2d": 5}'),
    ("norm1000", '{"point_2d": [1, 2], "point\\u005f2d": 7}', '{"point_2d": [1, 2], "point\\u005f2d": 7}'),
    ("paligemma", "<loc0001><loc0002><loc0003> cat", "<loc0001><loc0002><loc0003> cat"),
    ("paligemma", "<loc1024><loc0000>", "<loc1024><loc0000>"),
    ("qwen_vl", "<box>(1,2),(3,1000)</box>", "<box>(1,2),(3,1000)</box>"),
    ("qwen_vl", "<box>(1,2),(3", "<box>(1,2),(3"),
    ("internvl", "<box>[[1, 2, 3]]</box>", "<box>[[1, 2, 3]]</box>"),
    ("internvl", "<box>[[0.1, 0.2, 0.3, 0.4]]</box>", "<box>[[0.1, 0.2, 0.3, 0.4]]</box>"),
    ("florence2", "cat<loc_1><loc_2><loc_3>", "cat<loc_1><loc_2><loc_3>"),
    ("florence2", "<loc_1000><loc_2>", "<loc_1000><loc_2>"),
    # six are no box and a point
    ("florence2", "cat" + 6 * "<loc_1>", "cat" + 6 * "<loc_1>"),
    ("kosmos2", "<object><patch_index_1024></object>", "<object><patch_index_1024></object>"),
    ("kosmos2", "<object><patch_index_0001>", "<object><patch_index_0001>"),
    ("pix2seq", "<bin_1000><bin_1>", "<bin_1000><bin_1>"),
    ("shikra", "[0.1,0.2,0.3]", "[0.1,0.2,0.3]"),
    ("shikra", "[0.1,0.2,0.3,1.5]", "[0.1,0.2,0.3,1.5]"),
]


@pytest.mark.parametrize(("name", "text", "piece"), MALFORMED)
def test_malformed_pieces_are_reported_with_their_text(name: str, text: str, piece: str) -> None:
    parsed = make(name).parse(text, VGA)
    assert (parsed.boxes, parsed.points, parsed.malformed) == ((), (), (piece,))
    with pytest.raises(BoxDecodeError):
        make(name).parse(text, VGA, strict=True)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"pixel_text", "shikra"}))
def test_labels_come_back_and_group_neighbours(name: str) -> None:
    items = [Box(0, 0, 64, 48, "cat"), Box(64, 48, 320, 240, "cat"), Box(0, 0, 320, 240, "red dog"), Point(1, 2, "eye")]
    tokenizer = make(name)
    text = tokenizer.encode(items, VGA)
    parsed = tokenizer.parse(text, VGA, strict=True)
    assert [box.label for box in parsed.boxes] == ["cat", "cat", "red dog"]
    assert [point.label for point in parsed.points] == ["eye"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen_vl", "<ref>cat</ref><box>(0,0),(100,100)</box><box>(0,0),(500,500)</box>"),
        ("internvl", "<ref>cat</ref><box>[[0, 0, 100, 100], [0, 0, 500, 500]]</box>"),
        ("florence2", "cat<loc_0><loc_0><loc_100><loc_100><loc_0><loc_0><loc_500><loc_500>"),
        ("paligemma", "<loc0000><loc0000><loc0102><loc0102> cat ; <loc0000><loc0000><loc0512><loc0512> cat"),
        ("norm1000", '[{"bbox_2d": [0, 0, 100, 100], "label": "cat"}, {"bbox_2d": [0, 0, 500, 500], "label": "cat"}]'),
        (
            "kosmos2",
            "<phrase>cat</phrase><object><patch_index_0000><patch_index_0099></delimiter_of_multi_objects/>"
            "<patch_index_0000><patch_index_0495></object>",
        ),
        ("shikra", "[0.000,0.125,0.100,0.200;0.000,0.125,0.500,0.500]"),
        ("pixel_text", "<box> [0, 0, 64, 48], [0, 0, 320, 240] </box>"),
    ],
)
def test_lists_are_written_as_the_format_groups_them(name: str, text: str) -> None:
    assert make(name).encode([Box(0, 0, 64, 48, "cat"), Box(0, 0, 320, 240, "cat")], VGA) == text


@pytest.mark.parametrize(
    ("name", "label"), [("paligemma", "a;b"), ("qwen_vl", "a<b"), ("florence2", "a, b"), ("kosmos2", "<x>")]
)
def test_a_label_the_format_cannot_hold_is_refused(name: str, label: str) -> None:
    with pytest.raises(DataError, match=f"cannot be written in {name}"):
        make(name).encode(Box(0, 0, 1, 1, label), VGA)


def test_escaped_labels_come_back() -> None:
    label = 'a "quoted" {thing} & <more>'
    for name in ("molmo_points", "norm1000"):
        text = make(name).encode([Box(0, 0, 9, 9, label), Point(1, 1, label)], VGA)
        parsed = make(name).parse(text, VGA, strict=True)
        assert (parsed.boxes[0].label, parsed.points[0].label) == (label, label)


@pytest.mark.parametrize("name", FORMATS)
def test_coordinates_must_be_finite_and_are_clamped(name: str) -> None:
    with pytest.raises(DataError, match="finite"):
        make(name).encode(Point(float("nan"), 0), VGA)
    outside = make(name).encode(Box(700, 480, -5, 0), VGA)
    assert outside == make(name).encode(Box(0, 0, 640, 480), VGA)


@pytest.mark.parametrize("name", FORMATS)
def test_segments_keep_the_words_around_pieces(name: str) -> None:
    tokenizer = make(name)
    text = f"see: {tokenizer.encode(Box(0, 0, 64, 48), VGA)}, ok"
    before, items, after = tokenizer.segments(text, VGA)
    assert (before, after) == ("see: ", ", ok")
    assert isinstance(items, tuple)
    assert not isinstance(before, Malformed)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(640, 480), Size(644, 476)),  # 22.86 -> 23, 17.14 -> 17 times 28
        (Size(42, 70), Size(56, 56)),  # halves to even: 1.5 -> 2, 2.5 -> 2
        (Size(1920, 1080), Size(1316, 728)),  # too large: floor of 47.6 and 26.8
        (Size(1, 1), Size(56, 56)),  # too small
        (Size(8192, 1), Size(8204, 28)),
    ],
)
def test_the_resized_size_of_qwen(size: Size, expected: Size) -> None:
    assert resized_size(size, 28, 3136, 1003520) == expected


@pytest.mark.parametrize("case", POINTS["points_to_text"], ids=lambda case: case["label"])
def test_molmo_text_agrees_with_the_released_code(case: dict[str, Any]) -> None:
    scale = case["scale"]
    sides = [100 * s for s in scale] if isinstance(scale, list) else [scale, scale]
    size = Size(round(sides[0]), round(sides[1]))
    text = make("molmo_points").encode([Point(x, y, case["alt"]) for x, y in case["points"]], size)
    # the release writes another text between the tags than in `alt` when it has one; here both are the label
    assert text.split(">")[0] == case["text"].split(">")[0]


@pytest.mark.parametrize("case", POINTS["extract"], ids=lambda case: case["text"][:20])
def test_molmo_points_agree_with_the_released_parser(case: dict[str, Any]) -> None:
    parsed = make("molmo_points").parse(case["text"], VGA)
    tags = "<point" in case["text"]  # the release also takes bare `(x, y)` for points; here only tags are
    assert [(point.x, point.y) for point in parsed.points] == (
        [pytest.approx(tuple(point)) for point in case["points"]] if tags else []
    )


@pytest.mark.parametrize("other", ["null", "5", '"abcd"'])
def test_a_json_object_is_what_its_array_is(other: str) -> None:
    """Some models write both fields and fill one."""
    parsed = make("norm1000").parse(f'{{"bbox_2d": {other}, "point_2d": [500, 250], "label": "eye"}}', VGA)
    assert (parsed.boxes, parsed.points, parsed.malformed) == ((), (POINT,), ())
    parsed = make("norm1000").parse(f'{{"bbox_2d": [100, 100, 500, 500], "point_2d": {other}, "label": "cat"}}', VGA)
    assert (parsed.boxes, parsed.points, parsed.malformed) == ((BOX,), (), ())


def test_pairs_of_points_may_be_boxes() -> None:
    text = '<points x1="1.5" y1="2.5" x2="50.0" y2="60.0" alt="b">b</points>'
    assert len(make("molmo_points").parse(text, VGA).points) == 2
    assert make("molmo_points", pairs="boxes").parse(text, VGA).boxes == (Box(9.6, 12, 320, 288, "b"),)


def test_tags_are_an_option_of_pixel_text() -> None:
    bare = make("pixel_text", tags=False)
    assert bare.encode([Box(1, 2, 3, 4), Box(5, 6, 7, 8)], VGA) == "[1, 2, 3, 4], [5, 6, 7, 8]"
    assert len(bare.parse("[1, 2, 3, 4], [5, 6, 7, 8]", VGA, strict=True).boxes) == 2


def test_strict_errors_say_what_is_expected() -> None:
    with pytest.raises(BoxDecodeError, match=r"'<box>\(5,5\),\(1,1\)</box>': strict .* '<box>\(1,1\),\(5,5\)</box>'"):
        make("qwen_vl").parse("<box>(5,5),(1,1)</box>", VGA, strict=True)
    with pytest.raises(BoxDecodeError, match=r"'<box>\(5' is no box or point; expected for example <box>"):
        make("qwen_vl").parse("<box>(5", VGA, strict=True)
