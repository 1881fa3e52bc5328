"""Convolution and LSTM: a 2-D convolution finds spectral shapes, one LSTM remembers them.

The CRNN of Arik et al. 2017 (arXiv:1703.05390) and Zhang et al. 2017 (arXiv:1711.07128), made for streaming: causal
convolutions, one forward LSTM, label scores at every step of it.
"""

from __future__ import annotations

STRIDE = 4  # frames per score


def build(net, x, n_labels: int, filters: int = 32, width: int = 48, units: int = 64, dropout: float = 0.1):
    """x [B, T, 1, n] of n mel bands or MFCC -> scores [B, T/4, 1, n_labels]."""
    x = net.conv(net.bands(x), filters, (10, 8), "stem", stride=(STRIDE, 4))  # [B, T/4, n/4, filters]
    x = net.relu(net.norm(x, "stem_norm"), "stem_relu")
    x = net.conv(x, width, (1, x.shape[2]), "mix", same=False)  # [B, T/4, 1, width]
    x = net.relu(net.norm(x, "mix_norm"), "mix_relu")
    x = net.lstm(net.dropout(x, dropout, "mix_dropout"), units, "lstm")
    return net.conv(net.dropout(x, dropout, "dropout"), n_labels, 1, "label", bias=True)
