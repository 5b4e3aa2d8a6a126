# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of the segmentation node."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import os
import re

from .. import images
from ..framing import Framing, FramingError, parse_region, parse_rotation
from ..inference import segmenter
from ..sizes import parse_size, SizeError
from .live_segmenter import NetworkChoice
from .parameters import parameter


@dataclass(frozen=True)
class SegmentationParameters:
    """Parameters of the segmentation node; a test keeps `config/segmentation.yaml` equal to them."""

    model: str = parameter('laanet', 'Packaged network to run; "lightseg info" lists them.')
    weights: str = parameter('', 'Path of a weights file. Empty: the packaged weights of the model.')
    resolution: str = parameter(
        '', 'Size of the image that the network sees: WIDTHxHEIGHT in pixels, or "native" for the size of '
        'the camera image. Empty: the size that the weights were trained at.')
    resize_mode: str = parameter(
        'fit', 'fit: keep the aspect ratio and stay within the resolution; stretch: resize to exactly the '
        'resolution.', choices=segmenter.RESIZE_MODES)
    device: str = parameter(
        'auto', 'Device that runs the network: auto (CUDA if available), cpu, cuda, cuda:N, or openvino:GPU '
        'for an Intel GPU.', read_only=True)
    backend: str = parameter(
        'auto', 'Library that runs the network. auto: on a CPU openvino if installed, on CUDA torch.',
        choices=segmenter.BACKENDS)
    precision: str = parameter(
        'auto', 'Number format of the network. auto: float32 on a CPU, float16 on a GPU.',
        choices=segmenter.PRECISIONS)
    threads: int = parameter(
        0, 'Number of CPU threads. 0: one per core.', limits=(0, 1024), read_only=True)
    cameras: str = parameter(
        '', 'Names of several cameras, such as "front left". The node then subscribes to front/image, '
        'publishes ~/front/label, and so on. Empty: one camera without a name.', read_only=True)
    image_transport: str = parameter(
        'raw', 'raw: subscribe to image; compressed: subscribe to image/compressed.',
        choices=('raw', 'compressed'), read_only=True)
    max_pixels: int = parameter(
        1 << 26, 'Largest compressed image to decode, in pixels; a larger one is a failed frame. A few bytes '
        'can ask for gigabytes.', limits=(1, 1 << 30))
    value_range: str = parameter(
        'full', 'Values of 16-bit images that become 0 to 255: full (0 to 65535), auto (1st to 99th '
        'percentile of each image) or MIN:MAX. For single cameras of several: "thermal=7000:9000".',
        any_type=True)
    autostart: bool = parameter(
        True, 'Configure and activate at the start. false: wait for a lifecycle manager.', read_only=True)
    enabled: bool = parameter(
        True, 'Segment the images. false: unsubscribe from them. The service ~/enable sets it too.')
    lazy: str = parameter(
        'true', 'true: leave the images in the middleware while no output has a subscriber; subscription: '
        'unsubscribe from them instead; false: segment every image.',
        choices=('true', 'false', 'subscription'))
    image_size: str = parameter(
        '', 'Sizes of the camera images to prepare for at the start, such as "1280x720 640x480". Without it, '
        'the first image of a size takes longer. Empty: 640x480.', read_only=True)
    max_rate: float = parameter(
        0.0, 'Images per second that are segmented at most, of each camera; the others are left alone. '
        '0: all.', limits=(0.0, 1000.0))
    rotation: str = parameter(
        '0', 'Degrees by which an image is turned clockwise before the network sees it: 0, 90, 180 (a camera '
        'mounted upside down) or 270. All outputs keep the orientation of the image. For single cameras of '
        'several: "front=180 left=90".', any_type=True)
    roi: str = parameter(
        '', 'Part of the image that the network sees: WIDTHxHEIGHT+X+Y in pixels, before rotation. Labels '
        'outside are 255. Empty: the whole image. For single cameras: "front=640x300+0+100".')
    mask: str = parameter(
        '', "Path of a picture of the image's shape; labels are 255 where it is black, for example on the "
        'hood of the robot. For single cameras: "front=PATH".')
    smoothing: float = parameter(
        0.0, 'Share of the earlier images in the labels, so that they flicker less, such as 0.1. 0: '
        'none.', limits=(0.0, 0.9))
    confidence_threshold: float = parameter(
        0.0, 'Labels with less confidence are 255; label_info names the threshold. Makes labels later: they '
        'wait for their confidence.', limits=(0.0, 1.0))
    label_groups: str = parameter(
        '', 'Groups of classes that ~/groups shows: names of groups or classes separated by commas, or the '
        'path of a YAML file with lines such as "traversable: [road, sidewalk]". Empty: the groups of the '
        'label set, without those that share a class with an earlier one.', any_type=True)
    groups_as_label: bool = parameter(
        False, 'Publish the groups as ~/label too; label_info then names the groups.')
    overlay_alpha: float = parameter(
        0.5, 'Share of the class colour in the overlay; the rest is the camera image.', limits=(0.0, 1.0))
    publish_overlay: bool = parameter(True, 'Publish ~/overlay while it has a subscriber.')
    publish_confidence: bool = parameter(True, 'Publish ~/confidence while it has a subscriber.')
    publish_points: bool = parameter(
        False, 'Subscribe to depth (registered to the rectified image) and camera_info, and publish ~/points '
        'while it has a subscriber.', read_only=True)
    depth_transport: str = parameter(
        'raw', 'raw: subscribe to depth; compressedDepth: subscribe to depth/compressedDepth, PNG or RVL.',
        choices=('raw', 'compressedDepth'), read_only=True)
    depth_tolerance: float = parameter(
        0.02, 'Largest difference between the stamps of an image and its depth, in seconds.',
        limits=(0.0, 10.0), read_only=True)
    undistort_points: bool = parameter(
        False, 'Image and depth are not rectified: undo the distortion of the lens, as camera_info describes '
        'it, in ~/points.',
        read_only=True)
    max_age_warning: float = parameter(
        0.5, 'Age of the labels, from the stamp of the image to their publication, above which the '
        'diagnostics warn, in seconds. 0: never.', limits=(0.0, 3600.0))
    diagnostics_rate: float = parameter(
        1.0, 'Rate of /diagnostics, in Hz.', limits=(0.1, 100.0), read_only=True)

    def __post_init__(self) -> None:
        names = self.camera_names()
        if names != [''] and (len(set(names)) < len(names) or not all(
                re.fullmatch('[A-Za-z][A-Za-z0-9_]*', name) for name in names)):
            raise ValueError(f"parameter 'cameras' is {self.cameras!r}; expected different names separated "
                             'by commas or spaces, each made of letters, digits and _ and starting with '
                             'a letter')
        self._parse_framings()
        self.value_ranges()
        self.image_sizes()

    def camera_names(self) -> list[str]:
        """Return the names of the cameras; a single one without a name gives ['']."""
        return self.cameras.replace(',', ' ').split() or ['']

    def of_camera(self, text: str, camera: str) -> str:
        """Return the part of a parameter that is for one camera: NAME=VALUE, or a value for all of them."""
        pairs = [word.partition('=') for word in text.split()]
        if pairs and all(mark and name and name in self.camera_names() for name, mark, _ in pairs):
            return {name: value for name, _, value in pairs}.get(camera, '')
        return text

    def framings(self) -> dict[str, Framing]:
        """Return how the network sees each camera; reads the masks, `FramingError` if that fails."""
        return {camera: Framing(*of_camera) for camera, of_camera in self._parse_framings().items()}

    def _parse_framings(self) -> dict[str, tuple]:
        """Return rotation, region and path of the mask for each camera."""
        names = self.camera_names()
        try:
            return {name: (parse_rotation(self.of_camera(self.rotation, name) or '0'),
                           parse_region(self.of_camera(self.roi, name)), self.of_camera(self.mask, name))
                    for name in names}
        except FramingError as e:
            example = f', or {names[0]}=VALUE for single cameras' if names != [''] else ''
            raise FramingError(f'{e}{example}') from e

    def value_ranges(self) -> dict[str, images.Range]:
        """Return how the 16-bit images of each camera are read."""
        try:
            return {name: images.parse_range(self.of_camera(self.value_range, name) or 'full')
                    for name in self.camera_names()}
        except images.ImageError as e:
            raise ValueError(f"parameter 'value_range': {e}") from e

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return the (height, width) of the images to prepare for."""
        try:
            return [parse_size(size)[::-1] for size in self.image_size.split()]
        except SizeError as e:
            raise ValueError(f"parameter 'image_size': {e}") from e

    def seen_sizes(self, images: Mapping[str, Sequence[tuple[int, int]]] | None = None) -> list[
            tuple[int, int]]:
        """
        Return the (height, width) that the network sees of images.

        `images`: (height, width) of the images of each camera; None: `image_sizes`, of any camera.
        """
        return list(dict.fromkeys(
            Framing(rotation, region).seen_size(*size)
            for camera, (rotation, region, _) in self._parse_framings().items()
            for size in (self.image_sizes() if images is None else images.get(camera, ()))))

    def network(self) -> NetworkChoice:
        """Return what decides which network runs."""
        weights = os.path.expanduser(self.weights)
        return NetworkChoice(weights or self.model, self.device, self.resolution, self.resize_mode,
                             self.backend, self.precision, self.threads)
