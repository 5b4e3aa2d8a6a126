# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Loss functions: logits (N, K, H, W) and labels (N, H, W) int64, 255 = void, to a scalar."""
import torch
from torch import Tensor
import torch.nn.functional as F


def class_weights(frequency: Tensor, offset: float = 1.10) -> Tensor:
    """W = 1 / ln(offset + f), (K,): ENet's weights with the offset that the DABNet family uses."""
    return 1 / torch.log(offset + frequency)


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, *,
                  smoothing: float = 0.0, ignore_id: int = 255) -> Tensor:
    """
    Class-weighted cross entropy in fp32, the weighted mean over pixels that are not void.

    A batch without any valid pixel gives 0, not NaN.
    """
    loss = F.cross_entropy(logits.float(), labels, weight, ignore_index=ignore_id, reduction='sum',
                           label_smoothing=smoothing)
    valid = labels != ignore_id
    total = valid.sum() if weight is None else weight[labels.where(valid, 0)].mul(valid).sum()
    return loss / total.clamp_min(1e-6)
