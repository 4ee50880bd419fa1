"""The two models of the demo, small enough that a training run takes seconds on one core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut: ``y = relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``.

    Args:
        in_channels: channels of the input, shape ``(batch, in_channels, height, width)``.
        out_channels: channels of the output.
        stride: 1 keeps height and width, 2 halves them (and the shortcut becomes a 1x1 convolution).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, out_channels, height / stride, width / stride)``."""
        inner = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A ResNet for 8x8 images: one convolution, two residual blocks, global average pooling, ten logits.

    Args:
        width: channels of the first block; the second has twice as many.

    Example:
        >>> import torch
        >>> DigitsResNet(width=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(ResidualBlock(width, width), ResidualBlock(width, 2 * width, stride=2))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape ``(batch, 10)`` from images of shape ``(batch, 1, 8, 8)``."""
        features = self.blocks(relu(self.norm(self.stem(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees positions 0..t, near positions best.

    Scores fall linearly with distance, with a slope per head (ALiBi, Press et al. 2022): a short run finds the
    neighbouring characters at once. It does not call a fused kernel, because the Hessian trace needs a second
    derivative.
    """

    def __init__(self, width: int, num_heads: int, context: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"CausalSelfAttention: width must be a multiple of num_heads={num_heads}, got {width}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        slopes = 2.0 ** -torch.linspace(0, 6, num_heads).view(-1, 1, 1)
        distance = torch.arange(context).view(-1, 1) - torch.arange(context)
        bias = torch.where(distance < 0, float("-inf"), -slopes * distance)
        self.bias: Tensor
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The shape of ``x``, ``(batch, length, width)`` with ``length`` at most ``context``."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // self.num_heads) ** -0.5 + self.bias[:, :length, :length]
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        out: Tensor = self.out(mixed)
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention and a four times wider layer, each added to its input.

    The wider layer has squared ReLUs (Primer, So et al. 2021): cheaper than GELU on a CPU, and a lower loss here.
    """

    def __init__(self, width: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, num_heads, context)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The shape of ``x``, ``(batch, length, width)``."""
        x = x + self.attention(self.norm1(x))
        inner: Tensor = self.narrow(relu(self.widen(self.norm2(x))).square())
        return x + inner


class CharTransformer(nn.Module):
    """A causal Transformer over characters.

    Args:
        vocabulary: number of different characters.
        width: size of a character's vector, a multiple of ``num_heads``.
        num_layers: blocks.
        num_heads: attention heads a block.
        context: most characters that it sees at once.

    Example:
        >>> import torch
        >>> model = CharTransformer(vocabulary=97, width=8, num_layers=1, num_heads=2, context=16)
        >>> model(torch.zeros(2, 16, dtype=torch.long)).shape
        torch.Size([2, 16, 97])
    """

    def __init__(self, vocabulary: int, width: int, num_layers: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, num_heads, context) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.characters.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of the next character, shape ``(batch, length, vocabulary)``, from int64 ``(batch, length)``."""
        logits: Tensor = self.head(self.norm(self.blocks(self.characters(characters))))
        return logits
