# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the ids in a node's label and group images mean, latched for whoever subscribes later."""
import json

from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from std_msgs.msg import String

from .plan import Plan

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # vision_msgs is not on PyPI; without it the classes are published as JSON
    LabelInfo = None

LATCHED_QOS = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                         durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


class Announcements:
    """`~/label_info`, `~/groups_info`: vision_msgs/LabelInfo, or String with JSON where that is missing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        kind, suffix = (String, '_json') if LabelInfo is None else (LabelInfo, '')
        self._publishers = {of: node.create_publisher(kind, f'~/{of}_info{suffix}', LATCHED_QOS)
                            for of in ('label', 'groups')}

    def publish(self, plan: Plan) -> None:
        """Latch the classes and groups of a plan."""
        threshold = plan.parameters.confidence_threshold
        for of, classes in (('label', plan.labels), ('groups', plan.groups)):
            if classes is None:
                continue
            if LabelInfo is None:
                msg = String(data=json.dumps(classes.to_dict() | {'threshold': threshold}))
            else:
                msg = LabelInfo(threshold=threshold, class_map=[
                    VisionClass(class_id=i, class_name=name) for i, name in enumerate(classes.names)])
                msg.header.stamp = self._node.get_clock().now().to_msg()
            self._publishers[of].publish(msg)

    def destroy(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
