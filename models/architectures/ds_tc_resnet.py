"""Temporal convolutions only: a strided convolution over all mel bands, then residual depthwise-separable blocks.

The family of TC-ResNet (Choi et al. 2019, arXiv:1904.03814) and ds_tc_resnet (Rybakov et al. 2020,
arXiv:2005.06720), made for streaming: every block is causal, nothing pools over time, the label scores leave once
per stride and are averaged over the decision window outside the graph.
"""

from __future__ import annotations

STRIDE = 2  # frames per score


def build(
    net, x, n_labels: int, width: int = 64, blocks: int = 6, kernel: int = 9, growth: int = 2, dropout: float = 0.1
):
    """x [B, T, 1, mels] -> scores [B, T/2, 1, n_labels]. Block i has a kernel of kernel + i * growth; the receptive
    field is 5 + 2 * (sum of the kernels - blocks) frames: 1.6 s by default."""
    x = net.conv(x, width, 5, "stem", stride=STRIDE)  # [B, T/2, 1, width]
    x = net.relu(net.norm(x, "stem_norm"), "stem_relu")
    for i in range(blocks):
        y = net.norm(net.depthwise(x, kernel + i * growth, f"block{i}_time"), f"block{i}_time_norm")
        y = net.norm(net.conv(y, width, 1, f"block{i}_mix"), f"block{i}_mix_norm")
        x = net.relu(net.add(x, y, f"block{i}_add"), f"block{i}_relu")
    return net.conv(net.dropout(x, dropout, "dropout"), n_labels, 1, "label", bias=True)
