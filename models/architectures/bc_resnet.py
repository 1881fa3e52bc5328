"""Broadcasted residual: 2-D features, of which the temporal part is computed on their mean over frequency.

BC-ResNet (Kim et al. 2021, arXiv:2106.04140) with what int8 and streaming ask for: plain batch normalization, which
folds, for sub-spectral normalization, which does not; ReLU6 everywhere, after f2 too, and half the blocks of twice the
width, because every block adds its rounding to the same residual; longer kernels for dilated ones, because over one
averaged band they cost next to nothing. The stem takes four frames at a time, which the paper does not.
"""

from __future__ import annotations

STRIDE = 4  # frames per score
LIMIT = 6.0
STAGES = ((16, 1, 1, 3), (24, 1, 2, 3), (32, 2, 2, 9), (40, 2, 1, 9))  # channels, blocks, stride in frequency, kernel


def build(net, x, n_labels: int, scale: float = 1.0, dropout: float = 0.1):
    """x [B, T, 1, n] of n mel bands -> scores [B, T/4, 1, n_labels]. scale: of all channel counts. The receptive field
    is 1.7 s."""
    x = net.conv(net.bands(x), round(32 * scale), (8, 5), "stem", stride=(STRIDE, 2))  # [B, T/4, n/2, 32]
    x = net.relu(net.norm(x, "stem_norm"), "stem_relu", LIMIT)
    for i, (channels, blocks, stride, kernel) in enumerate(STAGES):
        for j in range(blocks):
            first = (round(channels * scale), stride) if j == 0 else None
            x = block(net, x, kernel, f"stage{i}_{j}", dropout, first)
    x = net.norm(net.depthwise(x, (5, x.shape[2]), "head_plane", same=False), "head_plane_norm")  # [B, T/4, 1, 40]
    x = net.relu(net.norm(net.conv(x, round(64 * scale), 1, "head"), "head_norm"), "head_relu", LIMIT)
    return net.conv(net.dropout(x, dropout, "dropout"), n_labels, 1, "label", bias=True)


def block(net, x, kernel: int, name: str, dropout: float, change: tuple[int, int] | None):
    """x + f2(x) + broadcast(f1(mean of f2(x) over frequency)); a block that changes (channels, stride) has no x."""
    shortcut = x
    if change:
        x = net.conv(x, change[0], (1, change[1]), f"{name}_change", stride=(1, change[1]))
        x = net.relu(net.norm(x, f"{name}_change_norm"), f"{name}_change_relu", LIMIT)
    x = net.norm(net.depthwise(x, (1, 3), f"{name}_bands"), f"{name}_bands_norm")
    x = net.relu(x, f"{name}_bands_relu", LIMIT)  # f2, [B, T, M, C]
    y = net.depthwise(net.average(x, f"{name}_average"), kernel, f"{name}_time")  # f1, [B, T, 1, C]
    y = net.relu(net.norm(y, f"{name}_time_norm"), f"{name}_time_relu", LIMIT)
    y = net.dropout(net.conv(y, x.shape[3], 1, f"{name}_mix", bias=True), dropout, f"{name}_dropout")
    if not change:
        x = net.add(x, shortcut, f"{name}_shortcut")
    return net.relu(net.add(x, y, f"{name}_broadcast"), f"{name}_relu", LIMIT)
