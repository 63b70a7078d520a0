"""The example's U-Net (examples/glyph_diffusion/model.rs) in PyTorch, parameter for parameter."""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (24, 48, 64)
OWN = (8, 16, 16)
GROUP = 8
EMBED = 96
HEADS = 4
CHARACTERS = 62


def norm(channels):
    return nn.GroupNorm(channels // GROUP, channels)


def conv3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, 1)


class ResBlock(nn.Module):
    """Normalise, convolve, add what the model is told, normalise, convolve, add the input."""

    def __init__(self, inputs, level, shrink=None):
        super().__init__()
        outputs, inner = WIDTHS[level], WIDTHS[level] + OWN[level]
        self.norm1 = norm(inputs)
        self.conv1 = conv3(inputs, inner)
        self.told = nn.Linear(EMBED, inner)
        self.norm2 = norm(inner)
        self.conv2 = conv3(inner, outputs)
        if inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1)
        # Called by the model, after the block; named as if it belonged to it.
        if shrink:
            self.shrink = conv3(outputs, shrink, 2)

    def forward(self, x, told):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.told(told)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.skip(x) if hasattr(self, "skip") else x)


class Attention(nn.Module):
    """Multi-head self-attention over positions, added to its input."""

    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(n, h * w, 3, HEADS, c // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = self.out(mixed.transpose(1, 2).reshape(n, h * w, c))
        return x + mixed.transpose(1, 2).reshape(n, c, h, w)


class Middle(ResBlock):
    def __init__(self, width):
        super().__init__(width, 2)
        self.attention = Attention(width)


def waves(levels):
    """Sines and cosines of the noise level, `[N, EMBED]`."""
    half = EMBED // 2
    steps = torch.arange(half, dtype=levels.dtype)
    angles = 1000.0 * levels[:, None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.sin(), angles.cos()], 1)


class GlyphUNet(nn.Module):
    """Three levels, one residual block each on the way down and up, attention at 4²."""

    def __init__(self, styles):
        super().__init__()
        w16, w8, w4 = WIDTHS
        self.condition = nn.ModuleDict(
            {
                "time1": nn.Linear(EMBED, EMBED),
                "time2": nn.Linear(EMBED, EMBED),
                "character": nn.Embedding(CHARACTERS + 1, EMBED),
                "style": nn.Embedding(styles, EMBED),
            }
        )
        self.stem = conv3(1, w16)
        self.down = nn.ModuleDict(
            {"16": ResBlock(w16, 0, w8), "8": ResBlock(w8, 1, w4), "4": ResBlock(w4, 2)}
        )
        self.middle = Middle(w4)
        self.up = nn.ModuleDict(
            {"4": ResBlock(2 * w4, 2), "8": ResBlock(w4 + w8, 1), "16": ResBlock(w8 + w16, 0)}
        )
        self.head = nn.ModuleDict({"norm": norm(w16), "conv": conv3(w16, 1)})

    def forward(self, x, levels, characters, styles):
        condition, down, up = self.condition, self.down, self.up
        time = condition["time2"](F.silu(condition["time1"](waves(levels))))
        told = F.silu(time + condition["character"](characters) + condition["style"](styles))
        skip16 = down["16"](self.stem(x), told)
        skip8 = down["8"](down["16"].shrink(skip16), told)
        skip4 = down["4"](down["8"].shrink(skip8), told)
        x = self.middle(self.middle.attention(skip4), told)
        x = up["4"](torch.cat([x, skip4], 1), told)
        x = up["8"](torch.cat([F.interpolate(x, scale_factor=2.0), skip8], 1), told)
        x = up["16"](torch.cat([F.interpolate(x, scale_factor=2.0), skip16], 1), told)
        return self.head["conv"](F.silu(self.head["norm"](x)))
