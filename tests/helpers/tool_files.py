"""The same annotations as CVAT, Label Studio and DeepLabCut export them, written by hand in their layouts.

Two images of 40 x 30 pixels, `cats/1.jpg` and `cats/2.jpg`. The nose of the first is at the centre of pixel (9, 4), its
tail at (30.25, 20.5); the ear is not annotated. The second has nothing.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 30)
NAMES = ("nose", "ear", "tail")
POINTS = {"nose": (9.0, 4.0), "tail": (30.25, 20.5)}

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <job>
      <id>7</id>
      <labels>
        <label>
          <name>cat</name>
          <color>#ff0000</color>
          <type>skeleton</type>
          <attributes>
          </attributes>
          <svg>&lt;line x1="1" data-type="edge" data-node-from="1" data-node-to="3"&gt;&lt;/line&gt;
            &lt;circle r="0.75" data-type="node" data-node-id="1" data-label-name="nose"&gt;&lt;/circle&gt;
            &lt;circle r="0.75" data-type="node" data-node-id="2" data-label-name="ear"&gt;&lt;/circle&gt;
            &lt;circle r="0.75" data-type="node" data-node-id="3" data-label-name="tail"&gt;&lt;/circle&gt;</svg>
        </label>
        <label><name>nose</name><type>points</type><attributes></attributes><parent>cat</parent></label>
        <label><name>ear</name><type>points</type><attributes></attributes><parent>cat</parent></label>
        <label><name>tail</name><type>points</type><attributes></attributes><parent>cat</parent></label>
        <label><name>cat box</name><type>rectangle</type><attributes></attributes></label>
      </labels>
    </job>
    <dumped>2026-01-01 00:00:00.000000+00:00</dumped>
  </meta>
  <image id="0" name="cats/1.jpg" width="40" height="30">
    <skeleton label="cat" source="manual" z_order="0">
      <points label="tail" source="manual" outside="0" occluded="1" points="30.75,21.00">
      </points>
      <points label="ear" source="manual" outside="1" occluded="0" points="3.00,3.00">
      </points>
      <points label="nose" source="manual" outside="0" occluded="0" points="9.50,4.50">
      </points>
      <attribute name="tame">yes</attribute>
    </skeleton>
    <box label="cat box" source="manual" occluded="0" xtl="5.00" ytl="2.00" xbr="35.00" ybr="25.00" z_order="0">
    </box>
  </image>
  <image id="1" name="cats/2.jpg" width="40" height="30">
    <box label="cat box" source="manual" occluded="0" xtl="6.00" ytl="3.00" xbr="36.00" ybr="26.00" z_order="0">
    </box>
  </image>
</annotations>
"""


def _region(kind: str, region: str, place: dict, **more: object) -> dict:
    return {
        "original_width": 40, "original_height": 30, "image_rotation": 0, "value": place, "id": region,
        "from_name": "kp" if kind == "keypointlabels" else "rect", "to_name": "img", "type": kind,
        "origin": "manual", **more,
    }  # fmt: skip


LABEL_STUDIO = [
    {
        "id": 11,
        "annotations": [
            {
                "id": 1,
                "was_cancelled": False,
                "ground_truth": False,
                "result": [
                    _region(
                        "rectanglelabels", "r1",
                        {"x": 12.5, "y": 100 * 2 / 30, "width": 75, "height": 100 * 23 / 30, "rotation": 0,
                         "rectanglelabels": ["cat"]},
                    ),
                    _region(
                        "keypointlabels", "k1", {"x": 23.75, "y": 15, "width": 0.4, "keypointlabels": ["nose"]},
                        parentID="r1",
                    ),
                    _region("keypointlabels", "k2", {"x": 76.875, "y": 70, "width": 0.4, "keypointlabels": ["tail"]}),
                ],
            }
        ],
        "predictions": [],
        "data": {"img": "/data/upload/3/0a1b2c3d-1.jpg"},
        "project": 3,
    },
    {
        "id": 12,
        "annotations": [],
        "predictions": [],
        "data": {"img": "/data/local-files/?d=store/cats/2.jpg"},
    },
]  # fmt: skip

DEEPLABCUT = """scorer,,,me,me,me,me,me,me
bodyparts,,,nose,nose,ear,ear,tail,tail
coords,,,x,y,x,y,x,y
labeled-data,cats,1.jpg,9.0,4.0,,,30.25,20.5
labeled-data,cats,2.jpg,,,,,,
"""

SEVERAL = """scorer,me,me,me,me,me,me,me,me,me,me
individuals,one,one,one,one,two,two,two,two,single,single
bodyparts,nose,nose,tail,tail,nose,nose,tail,tail,corner,corner
coords,x,y,x,y,x,y,x,y,x,y
labeled-data/cats/1.jpg,9.0,4.0,30.25,20.5,11,12,nan,nan,0,0
labeled-data/cats/2.jpg,,,,,,,,,,
"""


def write_images(root: Path) -> Path:
    """The folder of both images."""
    for number in (1, 2):
        path = root / "images" / "cats" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root / "images"


def write_tool_files(root: Path) -> dict[str, Path]:
    """A file of each tool, by the name of its format."""
    contents = {
        "cvat": ("annotations.xml", CVAT),
        "label-studio": ("project.json", json.dumps(LABEL_STUDIO)),
        "deeplabcut": ("CollectedData_me.csv", DEEPLABCUT),
    }
    for name, text in contents.values():
        (root / name).write_text(text, encoding="utf-8")
    return {kind: root / name for kind, (name, _) in contents.items()}
