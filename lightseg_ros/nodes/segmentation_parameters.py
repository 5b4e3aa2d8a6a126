# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of the segmentation node."""
from dataclasses import dataclass
import os
import re

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
        'auto', 'Library that runs the network on a CPU. auto: openvino if installed.',
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
    autostart: bool = parameter(
        True, 'Configure and activate at the start. false: wait for a lifecycle manager.', read_only=True)
    enabled: bool = parameter(
        True, 'Segment the images. false: unsubscribe from them. The service ~/enable sets it too.')
    lazy: str = parameter(
        'true', 'true: do not decode and segment images while no output has a subscriber; subscription: also '
        'unsubscribe from the images; false: segment every image.',
        choices=('true', 'false', 'subscription'))
    image_size: str = parameter(
        '', 'Sizes of the camera images to prepare for at the start, such as "1280x720 640x480". Without it, '
        'the first image of a size takes longer. Empty: 640x480.', read_only=True)
    overlay_alpha: float = parameter(
        0.5, 'Share of the class colour in the overlay; the rest is the camera image.', limits=(0.0, 1.0))
    publish_overlay: bool = parameter(True, 'Publish ~/overlay while it has a subscriber.')
    publish_confidence: bool = parameter(True, 'Publish ~/confidence while it has a subscriber.')
    publish_points: bool = parameter(
        False, 'Subscribe to depth (registered to the rectified image) and camera_info, and publish ~/points '
        'while it has a subscriber.', read_only=True)
    depth_tolerance: float = parameter(
        0.02, 'Largest difference between the stamps of an image and its depth, in seconds.',
        limits=(0.0, 10.0), read_only=True)
    diagnostics_rate: float = parameter(
        1.0, 'Rate of /diagnostics, in Hz.', limits=(0.1, 100.0), read_only=True)

    def __post_init__(self) -> None:
        names = self.camera_names()
        if names != [''] and (len(set(names)) < len(names) or not all(
                re.fullmatch('[A-Za-z][A-Za-z0-9_]*', name) for name in names)):
            raise ValueError(f"parameter 'cameras' is {self.cameras!r}; expected different names separated "
                             'by commas or spaces, each made of letters, digits and _ and starting with '
                             'a letter')
        self.image_sizes()

    def camera_names(self) -> list[str]:
        """Return the names of the cameras; a single one without a name gives ['']."""
        return self.cameras.replace(',', ' ').split() or ['']

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return the (height, width) of the images to prepare for."""
        try:
            return [parse_size(size)[::-1] for size in self.image_size.split()]
        except SizeError as e:
            raise ValueError(f"parameter 'image_size': {e}") from e

    def network(self) -> NetworkChoice:
        """Return what decides which network runs."""
        weights = os.path.expanduser(self.weights)
        return NetworkChoice(weights or self.model, self.device, self.resolution, self.resize_mode,
                             self.backend, self.precision, self.threads)
