"""Matrix products on a CPU: PyTorch's linear layer and convolution, with a faster way to compute the same.

PyTorch multiplies float32 matrices with MKL, which leaves AVX-512 unused on CPUs that are not Intel's, but convolves
with oneDNN, which does not. There a product is twice as fast as a convolution with a kernel of 1 x 1.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


HAS_FAST_CONVOLUTIONS = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies_faster_as_convolution(*tensors: torch.Tensor) -> bool:
    """Whether a convolution is the faster way to multiply these, here and now; exported models keep the plain way."""
    return (
        HAS_FAST_CONVOLUTIONS
        and not torch.compiler.is_exporting()
        and not torch.is_autocast_enabled("cpu")
        and all(is_plain_float32_on_cpu(tensor) for tensor in tensors)
    )


def is_plain_float32_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether it holds its numbers itself, unlike quantised and distributed tensors, and has any."""
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter) and not statically_known_true(tensor.numel() == 0)
    return is_plain and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def multiply_as_convolution(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`F.linear` of (rows, in_features) with (out_features, in_features), as a convolution with a kernel of 1 x 1."""
    # The kernel is the smaller of the two matrices, since oneDNN reorders it at each call.
    if statically_known_true(rows.shape[0] < weight.shape[0]):
        product = convolve_rows(weight, rows).t().contiguous()
        return product if bias is None else product.add_(bias)
    return convolve_rows(rows, weight, bias)


def convolve_rows(rows: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Convolve (rows, features), as an image one pixel wide, with (columns, features): (rows, columns)."""
    num_rows, features = rows.shape
    if torch.compiler.is_compiling():
        # Compiled, a view has arbitrary strides where the size is 1, and would not be taken for channels last.
        image = rows.contiguous().as_strided((1, features, num_rows, 1), (num_rows * features, 1, features, features))
    else:
        image = rows.view(1, num_rows, 1, features).permute(0, 3, 1, 2)
    return F.conv2d(image, kernel[:, :, None, None], bias).permute(0, 2, 3, 1).flatten(0, 2)


class CrossFormerLinear(nn.Linear):
    """Linear layer, computed as a convolution where that is faster."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        if not multiplies_faster_as_convolution(hidden_states, self.weight):
            return super().forward(hidden_states)
        rows = hidden_states.reshape(-1, self.in_features)
        output = multiply_as_convolution(rows, self.weight, self.bias)
        return output.view(*hidden_states.shape[:-1], self.out_features)


class CrossFormerPatchProjection(nn.Conv2d):
    """Convolution that takes a patch to a token; a few patches are gathered and multiplied with the kernel."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width), sides multiples of the stride, to out_channels, divided by it."""
        height, width = (size // stride for size, stride in zip(feature_map.shape[-2:], self.stride, strict=True))
        is_small = statically_known_true(feature_map.shape[0] * height * width < self.out_channels)
        # With few patches most of a convolution's time goes into reordering its kernel.
        if not (is_small and multiplies_faster_as_convolution(feature_map, self.weight)):
            return super().forward(feature_map)
        rows = self.gather_patches(feature_map).flatten(3).flatten(0, 2)
        output = multiply_as_convolution(rows, self.weight.flatten(1), self.bias)
        return output.view(-1, height, width, self.out_channels).permute(0, 3, 1, 2)

    def gather_patches(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) to (batch, rows of patches, columns, in_channels, *kernel_size)."""
        (vertical, horizontal), (row_step, column_step) = self.padding, self.stride
        padded = F.pad(feature_map, (horizontal, horizontal, vertical, vertical))
        patches = padded.unfold(2, self.kernel_size[0], row_step).unfold(3, self.kernel_size[1], column_step)
        return patches.permute(0, 2, 3, 1, 4, 5)


__all__ = ["CrossFormerLinear", "CrossFormerPatchProjection"]
