# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How a node processes frames: its parameters, applied to its cameras and its classes; no ROS."""
from collections.abc import Mapping
from dataclasses import dataclass
import math

import cv2
import numpy as np

from ..framing import Framing, VOID
from ..images import Range
from ..labels import LabelError, LabelSet
from .segmentation_parameters import SegmentationParameters


@dataclass(frozen=True, eq=False)
class Plan:
    """
    What holds for a frame from its decoding to its last output.

    `labels`: the meaning of the ids in ~/label. `groups`: that of the ids in ~/groups, None without groups.
    `framings`: how the network sees each camera. `value_ranges`: how 16-bit images of each are read.
    """

    parameters: SegmentationParameters
    labels: LabelSet
    groups: LabelSet | None
    framings: Mapping[str, Framing]
    value_ranges: Mapping[str, Range]
    _table: np.ndarray  # id of the network -> id in ~/groups
    _lowest: int  # confidence below this is not enough for a label

    @classmethod
    def make(cls, parameters: SegmentationParameters, network: LabelSet) -> 'Plan':
        """Make the plan for a network's classes; ValueError if the parameters do not fit them."""
        p = parameters
        try:
            chosen = network.choose_groups(p.label_groups)
            groups, table = network.grouped(chosen) if chosen else (None, np.full(256, VOID, np.uint8))
        except LabelError as e:
            raise LabelError(f"parameter 'label_groups': {e}") from e
        if p.groups_as_label and groups is None:
            raise LabelError(f"parameter 'groups_as_label' is true, but label set {network.name!r} has no "
                             "groups; name some in 'label_groups'")
        return cls(p, groups if groups and p.groups_as_label else network, groups, p.framings(),
                   p.value_ranges(), table,
                   # The small number makes up for decimal fractions that are not exact.
                   math.ceil(255 * p.confidence_threshold - 1e-6))

    @property
    def needs_confidence(self) -> bool:
        """Return whether the labels depend on the confidence."""
        return self._lowest > 0

    def announces_the_same(self, other: 'Plan') -> bool:
        """Return whether both plans give the published ids the same meaning."""
        return (self.labels == other.labels and self.groups == other.groups and
                self.parameters.confidence_threshold == other.parameters.confidence_threshold)

    def framing(self, camera: str) -> Framing:
        """Return how the network sees a camera."""
        return self.framings[camera]

    def class_ids(self, camera: str, ids: np.ndarray, confidence: np.ndarray | None,
                  size: tuple[int, int]) -> np.ndarray:
        """
        Return the network's class ids for the whole image, 255 where nothing is known.

        `ids`, `confidence`: (h, w) uint8 of what the network saw. `size`: (height, width) of the image.
        """
        if confidence is not None and self.needs_confidence:
            low = cv2.threshold(confidence, self._lowest - 1, VOID, cv2.THRESH_BINARY_INV)[1]
            ids = cv2.bitwise_or(ids, low)
        return self.framings[camera].labels(ids, *size)

    def label(self, ids: np.ndarray) -> np.ndarray:
        """Turn class ids into the ids of ~/label, which are the same unless groups are the label."""
        return self.group_ids(ids) if self.parameters.groups_as_label else ids

    def group_ids(self, ids: np.ndarray) -> np.ndarray:
        """Turn class ids into the ids of ~/groups; 255 for classes in no group."""
        return cv2.LUT(ids, self._table)

    def overlay(self, camera: str, overlay: np.ndarray, frame: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return an overlay of what the network saw for the whole frame, without colour where ids are 255."""
        framing = self.framings[camera]
        if self.needs_confidence or framing.changes_labels:
            return framing.overlay(overlay, frame, ids)
        return framing.turned_back(overlay)
