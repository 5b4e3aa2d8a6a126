# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""
Loss functions: logits (N, K, H, W) and labels (N, H, W) int64, void 255, give a scalar in float32.

They never wait for the device, and no tensor size depends on the data, so a CUDA graph can hold them. A batch
without valid pixels gives 0, not NaN.
"""
from collections.abc import Callable

import torch
from torch import Tensor
import torch.nn.functional as F

from .recipes import Recipe
from .samples import Statistics


def class_weights(frequency: Tensor, offset: float = 1.10) -> Tensor:
    """Return 1 / ln(offset + f), (K,): ENet's class weights, with the offset that the DABNet family uses."""
    return 1 / torch.log(offset + frequency)


def median_weights(frequency: Tensor) -> Tensor:
    """
    Return median(f) / f, (K,): median frequency balancing (Eigen and Fergus, ICCV 2015, section 6.3.2).

    `frequency`: share of each class among the pixels of those images that contain it; 0 for a class in no
    image, whose weight is 1.
    """
    seen = frequency > 0
    return torch.where(seen, frequency[seen].quantile(0.5) / frequency.clamp_min(1e-12), 1.0)


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, *,
                  smoothing: float = 0.0, ignore_id: int = 255) -> Tensor:
    """Return the class-weighted cross entropy, as the weighted mean over the pixels that are not void."""
    loss = F.cross_entropy(logits.float(), labels, weight, ignore_index=ignore_id, reduction='sum',
                           label_smoothing=smoothing)
    valid = labels != ignore_id
    total = valid.sum() if weight is None else weight[labels.where(valid, 0)].mul(valid).sum()
    return loss / total.clamp_min(1e-6)


def ohem(logits: Tensor, labels: Tensor, weight: Tensor | None = None, *, threshold: float = 0.7,
         kept: float = 1 / 16, ignore_id: int = 255) -> Tensor:
    """
    Return the cross entropy of the hard pixels: the Cityscapes loss of FBSNet and ELANet.

    A pixel is hard if the probability of its true class is at most `threshold`. If these are fewer than the
    share `kept` of all pixels, the hardest pixels up to that share count.
    """
    with torch.no_grad():
        # Void has probability 1, so it is chosen last; where valid pixels are few, all of them stay.
        p = (-F.cross_entropy(logits.float(), labels, ignore_index=ignore_id, reduction='none')).exp()
        hardest = p.flatten().topk(max(1, int(p.numel() * kept)), largest=False, sorted=False).values
        limit = hardest.max().clamp_min(threshold)
    return cross_entropy(logits, labels.where(p <= limit, ignore_id), weight, ignore_id=ignore_id)


def focal_terms(frequency: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return AFFNet's alpha (K,) float and gamma (K,) int64 for the class frequencies of the training labels.

    w = 1 / ln(1.02 + f), alpha = w / max w, gamma = floor(log10(f / min f)). So gamma counts the orders of
    magnitude by which a class is more frequent than the rarest one. A class that never occurs has gamma 0.
    """
    w = class_weights(frequency, 1.02)
    seen = frequency > 0
    rarest = frequency[seen].min()
    gamma = torch.log10((frequency / rarest).clamp_min(1)).floor().long()
    return w / w.max(), gamma


def owfl(logits: Tensor, labels: Tensor, alpha: Tensor, gamma: Tensor, *, highest_gamma: int,
         ignore_id: int = 255) -> Tensor:
    """
    Return AFFNet's loss: the mean of -alpha (1 - p)^gamma ln p over valid pixels, plus 0.5 cross entropy.

    `highest_gamma`: the largest value in `gamma`, as a Python number, so that the device is not asked for it.
    """
    valid = labels != ignore_id
    safe = labels.where(valid, 0)
    log_p = F.log_softmax(logits.float(), 1).gather(1, safe.unsqueeze(1)).squeeze(1)
    miss = (1 - log_p.exp()).clamp_min(0)
    # A product, because the gradient of pow is NaN at 0^0.
    damping = torch.ones_like(miss)
    for power in range(highest_gamma):
        damping = damping * torch.where(gamma[safe] > power, miss, 1.0)
    loss = -(alpha[safe] * damping + 0.5) * log_p
    return (loss * valid).sum() / valid.sum().clamp_min(1)


def distillation(logits: Tensor, labels: Tensor, target: Tensor, *, ignore_id: int = 255) -> Tensor:
    """Return the mean cross entropy over valid pixels with a teacher's probabilities, (N, K, H, W)."""
    valid = labels != ignore_id
    loss = -(target * F.log_softmax(logits.float(), 1)).sum(1)
    return (loss * valid).sum() / valid.sum().clamp_min(1)


def of_recipe(recipe: Recipe, found: Statistics, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss that a recipe names, with class weights from what was found in the data."""
    weight = None
    if recipe.class_weights:
        weight = median_weights(found.present_frequency) if recipe.weighting == 'median' \
            else class_weights(found.frequency)
        weight = weight.to(device)
    if recipe.loss == 'ohem':
        return lambda logits, y: ohem(logits, y, weight)
    if recipe.loss == 'owfl':
        alpha, gamma = focal_terms(found.frequency)
        highest = int(gamma.max())
        alpha, gamma = alpha.to(device), gamma.to(device)
        return lambda logits, y: owfl(logits, y, alpha, gamma, highest_gamma=highest)
    assert recipe.loss == 'ce', f'no branch for the loss {recipe.loss!r}'
    return lambda logits, y: cross_entropy(logits, y, weight, smoothing=recipe.smoothing)
