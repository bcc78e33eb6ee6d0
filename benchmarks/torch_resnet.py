"""The training step of the benchmark in PyTorch: same network, attack, loss and optimiser.

TensorFlow's "SAME" padding of a strided convolution pads below and to the right, PyTorch's
``padding=1`` on all sides. For even images the two are mirror images of each other, so PyTorch is
given mirrored images and mirrored kernels: the networks then are equal to rounding, and PyTorch
keeps the padding that its convolutions are fastest with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

STAGE_CHANNELS = (16, 32, 64)


def from_images(images: np.ndarray) -> torch.Tensor:
    """(batch, H, W, C) -> mirrored (batch, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images[:, ::-1, ::-1].transpose(0, 3, 1, 2)))


def to_images(images: torch.Tensor) -> np.ndarray:
    """The inverse of ``from_images``."""
    return images.detach().numpy().transpose(0, 2, 3, 1)[:, ::-1, ::-1]


class ConvBatchNorm(nn.Module):
    """A 3x3 convolution without bias and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(outputs, eps=1e-3, momentum=1 - 0.999)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve and normalise (batch, C, H, W)."""
        return self.normalization(self.convolution(features))


class Block(nn.Module):
    """Two convolutions and the parameter-free shortcut around them (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = ConvBatchNorm(inputs, outputs, stride)
        self.second = ConvBatchNorm(outputs, outputs)
        self.stride = stride
        missing = outputs - inputs
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Apply the block to (batch, C, H, W)."""
        residual = self.second(functional.relu(self.first(features), inplace=True))
        if self.stride > 1:
            features = functional.pad(functional.avg_pool2d(features, self.stride), self.padding)
        return functional.relu(residual + features, inplace=True)


class ResNet(nn.Module):
    """The CIFAR ResNet of a depth of 6n + 2, with the mean image subtracted inside."""

    def __init__(self, mean: np.ndarray, num_classes: int = 10, depth: int = 20):
        super().__init__()
        self.register_buffer("mean", from_images(mean[None]))
        self.stem = ConvBatchNorm(3, STAGE_CHANNELS[0])
        blocks = []
        inputs = STAGE_CHANNELS[0]
        for stage, outputs in enumerate(STAGE_CHANNELS):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Linear(inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, which are the embedding too, of (batch, C, H, W) in [0, 1]."""
        features = functional.relu(self.stem(images - self.mean), inplace=True)
        return self.dense(self.blocks(features).mean(dim=(2, 3)))

    def load(self, weights: Iterable[np.ndarray]) -> None:
        """Take over the weights of the Keras network, in the order of its layers."""
        weights = iter(weights)
        with torch.no_grad():
            for unit in self._units():
                kernel, gamma, beta, mean, variance = (next(weights) for _ in range(5))
                mirrored = kernel[::-1, ::-1].transpose(3, 2, 0, 1)
                unit.convolution.weight.copy_(torch.from_numpy(mirrored.copy()))
                norm = unit.normalization
                for target, value in (
                    (norm.weight, gamma),
                    (norm.bias, beta),
                    (norm.running_mean, mean),
                    (norm.running_var, variance),
                ):
                    target.copy_(torch.from_numpy(value))
            self.dense.weight.copy_(torch.from_numpy(next(weights).T.copy()))
            self.dense.bias.copy_(torch.from_numpy(next(weights)))

    def kernels(self) -> list[np.ndarray]:
        """Return convolution and dense kernels in Keras' layout and order."""
        convolutions = [unit.convolution.weight.detach().numpy() for unit in self._units()]
        mirrored = [kernel.transpose(2, 3, 1, 0)[::-1, ::-1] for kernel in convolutions]
        return [*mirrored, self.dense.weight.detach().numpy().T]

    def _units(self) -> list[ConvBatchNorm]:
        # Modules are listed in the order of their definition, which is that of the layers.
        return [module for module in self.modules() if isinstance(module, ConvBatchNorm)]


class Step:
    """One training step of the pivot loss, as ``AdversarialTrainer.train_step``.

    Args:
        network: in training mode between calls.
        settings: "learning_rate", "momentum", "weight_decay", "max_epsilon", "adversarial_weight"
            and "distance_weight".
        memory_format: of images and kernels.
        compiled: the losses, with the network and the gradients, by ``torch.compile``.
        half: the network in bfloat16 where ``torch.autocast`` finds that it may be.
    """

    def __init__(
        self,
        network: ResNet,
        settings: dict,
        memory_format: torch.memory_format,
        compiled: bool = False,
        half: bool = False,
    ):
        self.network = network.to(memory_format=memory_format).train()
        self.compiled = compiled
        self.half = half
        self.settings = settings
        self.memory_format = memory_format
        kernels = [p for p in network.parameters() if p.dim() > 1]
        others = [p for p in network.parameters() if p.dim() <= 1]
        # In the optimiser, which adds weight_decay * w to the gradient, decay is cheaper than as a
        # term of the loss and has the same effect. The fused update is PyTorch's fastest on a CPU.
        self.optimizer = torch.optim.SGD(
            [
                {"params": kernels, "weight_decay": settings["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings["learning_rate"],
            momentum=settings["momentum"],
            fused=True,
        )
        if compiled:
            self._attacked_loss = torch.compile(self._attacked_loss)
            self._loss = torch.compile(self._loss)

    def prepare(self, images: np.ndarray) -> torch.Tensor:
        """Mirror the images and put them into the memory format of the step."""
        return from_images(images).contiguous(memory_format=self.memory_format)

    def sample_epsilon(self, count: int) -> torch.Tensor:
        """Draw |N(0, max / 2)| clipped to max for each image."""
        largest = self.settings["max_epsilon"]
        return (torch.randn(count) * (largest / 2)).abs_().clamp_(max=largest)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits in float32, as ours are in any precision."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.network(images).float()

    def _attacked_loss(self, images: torch.Tensor) -> torch.Tensor:
        logits = self._logits(images)
        return functional.cross_entropy(logits, logits.detach().argmin(dim=1), reduction="sum")

    def make_adversarial(self, images: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
        """Step towards the least likely class, in inference mode."""
        self.network.eval()
        images = images.detach().requires_grad_()
        if self.compiled:
            # What is compiled has the gradients of all that needs any, asked for or not.
            self.network.requires_grad_(False)
        loss = self._attacked_loss(images)
        (gradient,) = torch.autograd.grad(loss, images)
        self.network.train()
        if self.compiled:
            self.network.requires_grad_(True)
        with torch.no_grad():
            scale = (epsilon / 255).view(-1, 1, 1, 1)
            return (images - scale * gradient.sign_()).clamp_(0, 1)

    def _loss(
        self, adversarial: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        count = len(images)
        logits = self._logits(torch.cat([adversarial, images]))
        per_image = functional.cross_entropy(logits, torch.cat([labels, labels]), reduction="none")
        weight = self.settings["adversarial_weight"]
        loss = (per_image[count:].sum() + weight * per_image[:count].sum()) / (
            count + weight * count
        )
        distance = (logits[:count] - logits[count:].detach()).square().sum()
        return loss + self.settings["distance_weight"] * distance

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, epsilon: torch.Tensor | None = None
    ) -> float:
        """Train on images and as many adversarial ones; return the loss without weight decay."""
        epsilon = self.sample_epsilon(len(images)) if epsilon is None else epsilon
        adversarial = self.make_adversarial(images, epsilon)
        loss = self._loss(adversarial, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()
