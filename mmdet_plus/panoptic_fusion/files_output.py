"""The folder that ``tools/panoptic_fuse.py`` writes to: resumable, and never half a file.

``settings.json`` tells what the folder was begun with. A finished image has its PNG in
``panoptic/``, and a record in ``.unfinished/`` until ``panoptic.json`` is written, last of all. An
image whose own files have changed since, by their sizes and times (``stamps.json``), is not done.

Shape legend: an image of H x W pixels.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import write_file, write_json

from .files_inputs import FusionFiles, ImageFiles

_VERSION = 1
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]


class OutFolder:
    """The folder that is written to.

    Args:
        path: Of the folder; it exists and is held by this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.json, self._pngs = path / "panoptic.json", path / "panoptic"
        self._settings, self._stamps = path / "settings.json", path / "stamps.json"
        self._work = path / ".unfinished"

    def claim(self, identity: dict) -> None:
        """Make the folder this job's, or find that it is.

        Raises:
            UserError: It holds something else, or was begun with other inputs or settings.
        """
        identity = json.loads(json.dumps({"version": _VERSION, **identity}))
        mend = "give another --out, or delete that folder first"
        if not self._settings.is_file():
            if set(os.listdir(self.path)) - {".lock"}:
                raise UserError(f"{self.path}: holds other files; {mend}")
            write_json(self._settings, identity)
        try:
            begun = json.loads(self._settings.read_bytes())
            if not isinstance(begun, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            raise UserError(f"{self._settings}: cannot be read ({error}); {mend}") from None
        if begun != identity:
            changes = "; ".join(_changes(begun, identity))
            raise UserError(
                f"{self.path}: was begun with other inputs or settings ({changes}); {mend}"
            )
        self._work.mkdir(exist_ok=True)

    def done(self, images: Sequence[ImageFiles]) -> dict[int, dict]:
        """The annotations of images that are done, by place."""
        annotations = _read_object(self.json).get("annotations", [])
        finished = {annotation["image_id"]: annotation for annotation in annotations}
        stamps = _read_object(self._stamps)
        done = {}
        for place, image in enumerate(images):
            if not (self._pngs / image.png).is_file():
                continue
            record = _read_object(self._record(place))
            if not record and image.image_id in finished:
                stamp = stamps.get(image.png)
                record = dict(annotation=finished[image.image_id], stamp=stamp)
            if record.get("stamp") == image.stamp:
                done[place] = record["annotation"]
        return done

    def write(self, place: int, image: ImageFiles, panoptic: np.ndarray, infos: list) -> dict:
        """Write an image's PNG, then the record that vouches for it; the latter is returned."""
        ids = panoptic.astype(np.uint32)
        # OpenCV writes the channels in the order BGR; COCO's ids are R + 256 G + 65536 B.
        colours = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
        # What a killed run left there vouches for nothing any more.
        self._record(place).unlink(missing_ok=True)
        content = cv2.imencode(".png", colours, _PNG)[1].tobytes()
        write_file(self._pngs / image.png, content, self._work)
        annotation = dict(image_id=image.image_id, file_name=image.png, segments_info=infos)
        record = dict(annotation=annotation, stamp=image.stamp)
        write_json(self._record(place), record, indent=None)
        return annotation

    def finish(self, files: FusionFiles, annotations: list[dict]) -> None:
        """Write the JSON."""
        sides = ("id", "file_name", "height", "width")
        content = dict(
            images=[{key: image[key] for key in sides} for image in files.image_records],
            annotations=annotations,
            categories=files.categories,
        )
        stamps = {image.png: image.stamp for image in files.images}
        write_json(self._stamps, stamps, aside=self._work)
        write_json(self.json, content, indent=None, aside=self._work)

    def clear(self) -> None:
        """Remove what is of no use once the JSON is there."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _record(self, place: int) -> Path:
        return self._work / f"{place}.json"


def _read_object(path: Path) -> dict:
    """A JSON object of ours; empty where it is not there, or was torn when the power went."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _changes(begun: dict, identity: dict) -> Iterator[str]:
    for group, now in identity.items():
        was = begun.get(group)
        if not isinstance(was, dict) or not isinstance(now, dict):
            if was != now:
                yield f"{group} was {was!r}, is {now!r}"
            continue
        for name in dict.fromkeys((*was, *now)):
            if was.get(name) != now.get(name):
                # Digests tell nobody anything.
                told = f" was {was.get(name)!r}, is {now.get(name)!r}"
                yield name + (told if group == "settings" else "")
