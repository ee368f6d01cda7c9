"""Points go into a part of a picture and out of it again."""

import numpy as np
import torch
from PIL import Image
from torch.testing import assert_close

from semcorr.data.pictures import Picture
from semcorr.inference.transfer.crop import crop_picture, enlarge_box, mirror_crop


def test_points_go_into_a_part_and_out_again():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    points = torch.tensor([[25.0, 17.0], [31.0, 12.0]])
    part = crop_picture(Picture(image, image.size, "a"), (20.0, 10.0, 15.0, 12.0))

    for one in (part, mirror_crop(part)):
        inside = one.to_crop(points)
        assert_close(one.from_crop(inside), points)
        for (x, y), (u, v) in zip(points.int().tolist(), inside.int().tolist(), strict=True):
            assert one.picture.image.getpixel((u, v)) == image.getpixel((x, y))


def test_a_part_of_a_huge_picture_is_in_its_original_pixels():
    reduced = Picture(Image.new("RGB", (60, 40)), (480, 320), "huge")
    part = crop_picture(reduced, (80.0, 80.0, 160.0, 80.0), margin=0.0)

    assert (part.corner, part.picture.size) == ((10, 10), (20, 10))
    assert_close(part.to_crop(torch.tensor([[79.5, 79.5]])), torch.tensor([[-0.5, -0.5]]))  # the box's corner
    assert_close(part.from_crop(torch.tensor([[19.5, 9.5]])), torch.tensor([[239.5, 159.5]]))


def test_the_default_type_of_numbers_moves_no_point():
    part = crop_picture(Picture(Image.new("RGB", (60, 40)), (479, 321), "huge"), (80.0, 80.0, 160.0, 80.0))
    points, box = torch.tensor([[301.3, 99.7]]), (10.1, 10.3, 5.0, 5.0)
    expected = part.to_crop(points), part.from_crop(points), enlarge_box(box, points)
    torch.set_default_dtype(torch.bfloat16)
    try:
        given = part.to_crop(points), part.from_crop(points), enlarge_box(box, points)
    finally:
        torch.set_default_dtype(torch.float32)

    assert torch.equal(given[0], expected[0])
    assert torch.equal(given[1], expected[1])
    assert given[2] == expected[2]


def test_a_box_is_enlarged_to_hold_its_keypoints():
    assert enlarge_box((10.0, 10.0, 5.0, 5.0), torch.tensor([[3.5, 12.0]])) == (4.0, 10.0, 11.0, 5.0)
