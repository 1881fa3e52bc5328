"""DS-CNN: depthwise-separable 2-D convolutions over time and frequency.

Zhang et al. 2017, "Hello Edge" (arXiv:1711.07128), the keyword network of MLPerf Tiny, made for streaming: every
kernel is causal in time; the average over the clip is left to the decision window outside the graph, which for a linear
last layer is the same function.
"""

from __future__ import annotations

STRIDE = 4  # frames per score: 40 ms, as in the paper


def build(net, x, n_labels: int, width: int = 64, blocks: int = 4, kernel: int = 3, dropout: float = 0.2):
    """x [B, T, 1, n] of n MFCC (10 in the paper) or mel bands -> scores [B, T/4, 1, n_labels]. Kernels of the blocks
    are `kernel` scores by 3 features; the receptive field is 12 + 4 * blocks * (kernel - 1) frames."""
    x = net.conv(net.bands(x), width, (12, 4), "stem", stride=(STRIDE, 2))  # [B, T/4, n/2, width]
    x = net.relu(net.norm(x, "stem_norm"), "stem_relu")
    for i in range(blocks):
        x = net.relu(net.norm(net.depthwise(x, (kernel, 3), f"block{i}_plane"), f"block{i}_plane_norm"), f"block{i}_a")
        x = net.relu(net.norm(net.conv(x, width, 1, f"block{i}_mix"), f"block{i}_mix_norm"), f"block{i}_b")
    x = net.average(x, "average")  # [B, T/4, 1, width]
    return net.conv(net.dropout(x, dropout, "dropout"), n_labels, 1, "label", bias=True)
