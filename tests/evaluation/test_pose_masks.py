"""An object's cells: from boxes, from the benchmark's segmentation, from Segment Anything."""

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from tiny_benchmarks import write_spair

from semcorr.core.errors import UserError
from semcorr.core.types import FeatureMap
from semcorr.data.record import ImageRecord, Segmentation
from semcorr.data.spair import SPair
from semcorr.evaluation.pose import masks as sam
from semcorr.evaluation.pose.masks import ObjectMasks, box_cells, mask_cells, segmentation_mask

CPU = torch.device("cpu")


def record(size, box, **changes):
    return ImageRecord("one", None, size, torch.zeros(0, 2), torch.zeros(0).bool(), box)._replace(**changes)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("box", [(3.0, 5.0, 33.0, 21.0), (0.0, 0.0, 59.0, 39.0), (50.0, 30.0, 51.0, 31.0)])
def test_cells_of_a_box_are_those_of_the_mask_that_it_is(box, resize):
    """60 x 40 pixels shown at 120: each is four, or six, and no cell is cut on the way."""
    mask = torch.zeros(40, 60, dtype=torch.bool)
    for y in range(40):
        for x in range(60):
            mask[y, x] = box[0] <= x <= box[2] and box[1] <= y <= box[3]

    cells = box_cells(record((60, 40), box), 120, resize, 12)

    assert torch.equal(cells, mask_cells(mask, 120, resize, 12))
    assert cells.any()


def test_cells_of_a_mask_are_those_half_covered():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0:4, 0:2] = True  # half of the first cell
    mask[4:8, 0:1] = True  # a quarter of the one below
    mask[0:4, 4:8] = True  # all of the one beside it

    assert mask_cells(mask, 8, "squash", 2).tolist() == [[True, True], [False, False]]


def test_an_object_smaller_than_half_a_cell_still_has_one():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[6, 1] = True

    assert mask_cells(mask, 8, "squash", 2).tolist() == [[False, False], [True, False]]


@pytest.fixture
def cats(tmp_path):
    """Three cats with masks: class 8 in the box and out of it, another class beside it."""
    root = write_spair(tmp_path / "spair")
    (root / "Segmentation" / "cat").mkdir(parents=True)
    classes = np.zeros((30, 40), dtype=np.uint8)
    classes[:, :20], classes[:, 20:] = 8, 12
    for stem in ("one", "two", "three"):
        Image.fromarray(classes).save(root / "Segmentation" / "cat" / f"{stem}.png")
    return SPair(root=str(root), size=80)


def test_segmentation_is_the_objects_class_within_its_box(cats):
    image = cats.pairs("test")[0].source  # x 2 to 30, y 3 to 20

    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[3:21, 2:20] = True
    assert torch.equal(segmentation_mask(image), expected)


def test_auto_is_segmentation_where_every_image_has_one_and_the_box_elsewhere(cats):
    assert ObjectMasks("auto", cats, "test").kind == "segmentation"
    (cats.root / "Segmentation/cat/two.png").unlink()
    assert ObjectMasks("auto", SPair(root=str(cats.root), size=80), "test").kind == "box"


def test_masks_differ_by_how_they_were_asked_for(cats):
    image, maps = cats.pairs("test")[0].source, FeatureMap(torch.zeros(1, 1, 10, 10), 8.0)
    box, segmentation = (ObjectMasks(kind, cats, "test")(image, maps) for kind in ("box", "segmentation"))

    assert torch.equal(box, box_cells(image, 80, "squash", 10))
    assert torch.equal(segmentation, mask_cells(segmentation_mask(image), 80, "squash", 10))
    assert bool((box & ~segmentation).any())
    assert ObjectMasks("none", cats, "test")(image, maps) is None


def test_a_segmentation_without_the_object_is_refused(cats):
    image = cats.pairs("test")[0].source
    path = image.segmentation.path
    with pytest.raises(UserError, match=r"one.png has no pixel of class 20 in the box of cat/one.*pose.mask=box"):
        segmentation_mask(image._replace(segmentation=Segmentation(path, 20)))
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(UserError, match="shape"):
        segmentation_mask(image)
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="damaged"):
        segmentation_mask(image)


def test_segmentation_of_a_mirrored_file_is_mirrored(cats):
    image = cats.pairs("test")[0].source
    plain = segmentation_mask(image._replace(box=(0.0, 0.0, 39.0, 29.0)))

    assert torch.equal(segmentation_mask(image._replace(box=(0.0, 0.0, 39.0, 29.0), mirrored=True)), plain.flip(-1))


def small_model():
    """Segment Anything's architecture at 64 pixels."""
    encoder = ImageEncoderViT(img_size=64, patch_size=16, embed_dim=32, depth=1, num_heads=2, out_chans=32)
    prompt = PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=1, embedding_dim=32, mlp_dim=32, num_heads=2)
    decoder = MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=32)
    return Sam(encoder, prompt, decoder)


def test_segment_anything_is_built_from_its_checkpoint_and_asked_with_the_box(cats, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setattr(sam, "MODELS", {32: "small"})
    monkeypatch.setattr("segment_anything.sam_model_registry", {"small": small_model})

    prompted = sam.load_box_prompted_sam(str(tmp_path / "sam.pth"), CPU)

    for key, value in prompted.predictor.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    prompts = {}
    predict = prompted.predictor.predict

    def remember(**options):
        prompts.update(options)
        masks, *rest = predict(**options)
        return np.ones_like(masks), *rest  # random weights may find nothing

    prompted.predictor.predict = remember
    image = cats.pairs("test")[0].source
    assert prompted(image).shape == (30, 40)
    assert prompts["box"].tolist() == list(image.box)


def test_a_mask_of_nothing_is_refused(cats):
    class Blind:
        def set_image(self, image): ...

        def predict(self, **options):
            return np.zeros((1, 30, 40), dtype=bool), None, None

    with pytest.raises(UserError, match="found nothing in the box of cat/one"):
        sam.BoxPromptedSAM(Blind())(cats.pairs("test")[0].source)


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a complete Segment Anything model"):
        sam.load_box_prompted_sam(str(tmp_path / "other.pth"), CPU)
    with pytest.raises(UserError, match=r"pose.sam_weights.*does not exist"):
        sam.load_box_prompted_sam(str(tmp_path / "none.pth"), CPU)
