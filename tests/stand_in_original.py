"""Stands in for the original code where `verify_crossformer.py` is tested: its interface and names, in one stage.

Written for these tests, for one case only: a single stage, one patch size, and a group as large as the map, so that
nothing is grouped or padded. The test copies this file to where a checkout has the original's. `DENSE` makes it the
original's dense backbone, which hands the size of the map along and has no head.
"""

import math

import torch
from timm.models.layers import DropPath, to_2tuple
from torch import nn


DENSE = False
if DENSE:
    from mmcv.cnn.bricks.transformer import build_dropout  # noqa: F401
    from mmcv.runner import BaseModule  # noqa: F401
    from mmdet.utils import get_root_logger

    get_root_logger().info("Importing works without mmdetection.")


class PositionBias(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        width = channels // 16
        self.pos_proj = nn.Linear(2, width)
        for number, out in ((1, width), (2, width), (3, heads)):
            setattr(self, f"pos{number}", nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)))

    def forward(self, offsets):
        return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.pos = PositionBias(channels, heads)

    def forward(self, tokens, side):
        positions = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()  # as the original: float32
        bias = self.pos(positions[:, None] - positions[None]).permute(2, 0, 1)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + bias
        return self.proj((scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, tokens):
        return self.fc2(nn.functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = Attention(channels, heads)
        self.mlp = Mlp(channels)
        self.drop_path = DropPath(0.1)

    def forward(self, tokens, *_):
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), math.isqrt(tokens.shape[1])))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class Stage(nn.Module):
    def __init__(self, channels, heads, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(depth))

    def forward(self, tokens, *size):
        for block in self.blocks:
            tokens = block(tokens, *size)
        return tokens


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, channels):
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.projs = nn.ModuleList([nn.Conv2d(3, channels, patch_size[0], stride=patch_size[0])])
        self.norm = nn.LayerNorm(channels)

    def forward(self, image):
        tokens = self.norm(self.projs[0](image).flatten(2).transpose(1, 2))
        assert DENSE or tuple(image.shape[2:]) == self.img_size
        return (tokens, *image.shape[2:]) if DENSE else tokens


class CrossFormer(nn.Module):
    def __init__(self, img_size, patch_size, num_classes, embed_dim, depths, num_heads, **_):
        super().__init__()
        print("Group Size:")
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim)
        self.layers = nn.ModuleList([Stage(embed_dim, num_heads[0], depths[0])])
        if not DENSE:
            self.norm = nn.LayerNorm(embed_dim)
            self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, image):
        if DENSE:
            tokens, height, width = self.patch_embed(image)
            return [self.layers[0](tokens, height // 4, width // 4)]
        return self.head(self.norm(self.layers[0](self.patch_embed(image))).mean(dim=1))
