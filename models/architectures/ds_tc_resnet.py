"""A small 2-D front over time and mel, then residual blocks of depthwise-separable convolutions over time only.

The family of TC-ResNet (Choi et al. 2019, arXiv:1904.03814) and ds_tc_resnet (Rybakov et al. 2020,
arXiv:2005.06720), made for streaming: every layer is causal, nothing pools over time, the label scores leave once
per stride and are averaged over the decision window outside the graph. The front replaces their first convolution
over all mel bands at once: with fewer weights it learns the training set further, since what it learns about one
band holds for the others.
"""

from __future__ import annotations

STRIDE = 2  # frames per score


def build(
    net,
    x,
    n_labels: int,
    width: int = 56,
    blocks: int = 6,
    kernel: int = 9,
    growth: int = 2,
    front: int = 8,
    dropout: float = 0.1,
):
    """x [B, T, 1, mels] -> scores [B, T/2, 1, n_labels]. front: channels after its first convolution; block i has a
    kernel of kernel + i * growth. The receptive field is 13 + 2 * (sum of the kernels - blocks) frames: 1.7 s by
    default."""
    x = net.bands(x)  # [B, T, mels, 1]
    for i, (channels, size, stride) in enumerate(
        ((front, 5, STRIDE), (front * 3 // 2, 3, 1), (front * 2, 3, 1))  # mels/2, mels/4, mels/8 bands
    ):
        x = net.conv(x, channels, (size, size), f"front{i}", stride=(stride, 2))
        x = net.relu(net.norm(x, f"front{i}_norm"), f"front{i}_relu")
    x = net.conv(x, width, (1, x.shape[2]), "stem", same=False)  # [B, T/2, 1, width]
    x = net.relu(net.norm(x, "stem_norm"), "stem_relu")
    for i in range(blocks):
        y = net.norm(net.depthwise(x, kernel + i * growth, f"block{i}_time"), f"block{i}_time_norm")
        y = net.norm(net.conv(y, width, 1, f"block{i}_mix"), f"block{i}_mix_norm")
        x = net.relu(net.add(x, y, f"block{i}_add"), f"block{i}_relu")
    return net.conv(net.dropout(x, dropout, "dropout"), n_labels, 1, "label", bias=True)
