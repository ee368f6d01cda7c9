"""Labels written as CVAT for images 1.1, which CVAT imports as annotations whose source is `auto`."""

from collections.abc import Mapping, Sequence
from html import escape
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from semcorr.core.text_files import JsonMapping
from semcorr.inference.transfer.labels import KeypointLabel, group_labels, skeleton_edges
from semcorr.inference.transfer.objects import Annotations, CvatNames, category_name


def format_cvat(annotations: Annotations, labels: Sequence[KeypointLabel]) -> str:
    """Return annotations.xml: a skeleton for each label, or points where the file that was read has points.

    Keypoints that were not found are `outside`, at the place that was predicted. Scores are attributes called `score`,
    which CVAT keeps if the label has such an attribute, and drops otherwise.
    """
    tool = annotations.tool if isinstance(annotations.tool, CvatNames) else CvatNames({}, {}, {})
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    categories = {category["id"]: category for category in annotations.categories}
    label_list = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for category in categories.values():
        if category.get("keypoints") and category_name(category) not in tool.points:
            _declare_skeleton(label_list, category)
    for number, image_labels in enumerate(group_labels(labels)):
        photo, (width, height) = image_labels[0].target.photo, image_labels[0].size
        name = tool.images.get(photo.id, photo.name)  # by which CVAT finds the image: it asks for ids in videos alone
        sizes = {"width": str(width), "height": str(height)}
        image = SubElement(root, "image", {"id": str(number), "name": name, **sizes})
        for group, label in enumerate(image_labels, 1):
            category = categories[label.target.category]
            name = category_name(category)
            if name in tool.points:
                _add_points(image, label, category, tool.points[name], group)
            else:
                _add_skeleton(image, label, category, tool.boxes.get(name), group)
    indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tostring(root, encoding="unicode")}\n'


def _declare_skeleton(labels: Element, category: JsonMapping) -> None:
    """Add a label and its keypoints, which have it as their parent."""
    name = category_name(category)
    label = SubElement(labels, "label")
    for field, text in (("name", name), ("type", "skeleton")):
        SubElement(label, field).text = text
    names = category["keypoints"]
    numbered = enumerate((escape(name, quote=True) for name in names), 1)
    nodes = [f'<circle data-node-id="{i}" data-label-name="{name}"></circle>' for i, name in numbered]
    lines = [f'<line data-node-from="{i + 1}" data-node-to="{j + 1}"></line>' for i, j in skeleton_edges(category)]
    SubElement(label, "svg").text = "".join(lines + nodes)
    for keypoint in names:
        part = SubElement(labels, "label")
        for field, text in (("name", keypoint), ("type", "points"), ("parent", name)):
            SubElement(part, field).text = text


def _add_skeleton(
    image: Element, label: KeypointLabel, category: JsonMapping, box_label: str | None, group: int
) -> None:
    """Add a skeleton with all its keypoints, and the box of the object, if the file that was read has such boxes."""
    name = category_name(category)
    attributes = {"group_id": str(group)} if label.target.box and box_label else {}
    skeleton = SubElement(image, "skeleton", {"label": name, "source": "auto", "z_order": "0", **attributes})
    SubElement(skeleton, "attribute", {"name": "score"}).text = f"{label.score:.4f}"
    for keypoint, place, score, valid in zip(
        category["keypoints"], _format_places(label), label.scores.tolist(), label.valid.tolist(), strict=True
    ):
        flags = {"outside": "0" if valid else "1", "occluded": "0"}
        element = SubElement(skeleton, "points", {"label": keypoint, "source": "auto", **flags, "points": place})
        SubElement(element, "attribute", {"name": "score"}).text = f"{score:.4f}"
    if box_label:
        _add_box(image, label, box_label, attributes)


def _add_points(
    image: Element, label: KeypointLabel, category: JsonMapping, parts: Mapping[str, Sequence[str]], group: int
) -> None:
    """Add points of each label, all keypoints of which were found, in one group with the box of the object."""
    names, places, valid = category["keypoints"], _format_places(label), label.valid.tolist()
    attributes = {"group_id": str(group)}
    for part, part_names in parts.items():
        numbers = [names.index(name) for name in part_names]
        if all(valid[i] for i in numbers):
            shape = {"label": part, "source": "auto", "occluded": "0", "points": ";".join(places[i] for i in numbers)}
            element = SubElement(image, "points", {**shape, "z_order": "0", **attributes})
            score = sum(float(label.scores[i]) for i in numbers) / len(numbers)
            SubElement(element, "attribute", {"name": "score"}).text = f"{score:.4f}"
    _add_box(image, label, category_name(category), attributes)


def _add_box(image: Element, label: KeypointLabel, name: str, group: dict[str, str]) -> None:
    """Add the box that the object was given."""
    if label.target.box:
        x, y, w, h = label.target.box
        corners = {"xtl": x, "ytl": y, "xbr": x + w, "ybr": y + h}
        places = {key: f"{value:.2f}" for key, value in corners.items()}
        SubElement(image, "box", {"label": name, "source": "auto", "occluded": "0", **places, "z_order": "0"} | group)


def _format_places(label: KeypointLabel) -> list[str]:
    """Return x,y of each keypoint from the image's corner, within the image."""
    width, height = label.size
    return [
        f"{min(max(round(x, 2) + 0.5, 0), width):.2f},{min(max(round(y, 2) + 0.5, 0), height):.2f}"
        for x, y in label.points.tolist()
    ]
