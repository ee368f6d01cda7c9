"""SPair-U: SPair-71k's test pairs with keypoints unseen in training, about four per category.

Same schema, same images, same pair list; pairs without a new keypoint in common have no file. Its
zip unpacks to a tree of its own; the authors' loader reads the same files out of SPair-71k's.
"""

from pathlib import Path
from typing import Unpack

from semcorr.core.errors import UserError
from semcorr.data.datamodule import OfficialCounts, PairOptions
from semcorr.data.download.recipe import ArchiveInfo, DownloadRecipe
from semcorr.data.record import PairRecord, pad_keypoints, require_root
from semcorr.data.spair import FOLDERS, SPair, SPairTree, read_tree_pairs


class SPairU(SPair):
    """`root` is SPair-U's own tree, or SPair-71k's with ExtraPairAnnotation and ExtraImageAnnotation.

    Args:
        spair: SPair-71k, whose images and pair lists it uses.
        **options: As for every benchmark.
    """

    name = "spair_u"
    splits = ("test",)
    official = OfficialCounts()
    recipe = DownloadRecipe(
        licence="annotations by the authors of Jamais Vu; images from PASCAL VOC (Flickr terms), research use",
        archives=(ArchiveInfo("SPair-U.zip", "https://groups.inf.ed.ac.uk/hbilen-data/data/JamaisVuData/SPair-U.zip"),),
        landmark="PairAnnotation/test",
    )

    def __init__(self, *, spair: str, **options: Unpack[PairOptions]) -> None:
        super().__init__(**options)
        self.spair = Path(spair)

    def tree(self) -> SPairTree:
        """Return the folders of whichever of the two trees exists."""
        require_root(self.root, "SPair-U", "Run `python -m semcorr.prepare spair_u`, or give data.root=DIR.")
        prefix = "Extra" if (self.root / "ExtraPairAnnotation").is_dir() else ""
        pairs, images = (self.root / f"{prefix}{kind}Annotation" for kind in ("Pair", "Image"))
        if not pairs.is_dir():
            raise UserError(f"{self.root} has neither PairAnnotation nor ExtraPairAnnotation. Unpack SPair-U.zip.")
        home = next((home for home in (self.root, self.spair) if (home / "JPEGImages").is_dir()), None)
        if home is None:
            raise UserError(f"SPair-U uses SPair-71k's images: not at {self.spair}/JPEGImages. Give data.spair=DIR.")
        return SPairTree(
            home / "Layout" / "large", pairs, images, home / "JPEGImages", slots=None, facts=None, partial=True
        )

    def records(self, split: str) -> list[PairRecord]:
        """Return the pairs in the order of SPair-71k's list."""
        return pad_keypoints(read_tree_pairs(self.tree(), FOLDERS[split]))
