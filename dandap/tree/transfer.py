"""Transfers from the host to a device without the host waiting."""

import math
from dataclasses import dataclass

import torch


def send(numbers: list | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return numbers on a device; on CUDA the host continues while they are copied."""
    tensor = torch.as_tensor(numbers)
    # Only a copy from page-locked memory is asynchronous.
    if torch.device(device).type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Packed:
    """The arrays of several batches as one, so that one transfer moves all to a device."""

    numbers: torch.Tensor  # flat, of integers
    shapes: list[dict[str, tuple[int, ...]]]  # per batch, in the order of the numbers

    def pin_memory(self) -> "Packed":
        """Return the same in page-locked memory; a DataLoader calls this where CUDA is used."""
        return Packed(self.numbers.pin_memory(), self.shapes)

    def on(self, device: torch.device | str) -> list[dict[str, torch.Tensor]]:
        """Return the batches on a device."""
        numbers = send(self.numbers, device)
        sizes = [math.prod(shape) for shapes in self.shapes for shape in shapes.values()]
        pieces = iter(numbers.split(sizes))
        return [
            {name: next(pieces).view(shape) for name, shape in shapes.items()}
            for shapes in self.shapes
        ]
