"""The layers an architecture is made of, whole and step."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="tensorflow is not installed (requirements-host.txt)")

from models.layers import Net, build_whole, keras
from models.train import load_architecture
from toolkit.errors import ConfigError


@pytest.mark.parametrize("bands, kernel, stride", [(40, 5, 2), (40, 8, 4), (10, 4, 2), (7, 3, 1), (9, 1, 2), (5, 6, 5)])
def test_bands_are_padded_as_tensorflow_does(bands, kernel, stride):
    net, x = Net(step=False), keras.Input((None, bands, 2))
    model = keras.Model(x, net.conv(x, 3, (1, kernel), "c", stride=(1, stride)))
    values = np.random.default_rng(0).standard_normal((1, 4, bands, 2)).astype(np.float32)
    same = keras.layers.Conv2D(3, (1, kernel), (1, stride), "same", use_bias=False)
    same.build(values.shape)
    same.set_weights(model.get_weights())
    np.testing.assert_allclose(model(values), same(values), atol=1e-5)


def test_a_valid_kernel_as_wide_as_the_axis_leaves_one_band():
    net, x = Net(step=False), keras.Input((None, 12, 2))
    assert net.conv(x, 3, (4, 12), "c", same=False).shape[1:] == (None, 1, 3)
    assert net.depthwise(x, (4, 12), "d", same=False).shape[1:] == (None, 1, 2)


def test_bands_and_their_average():
    net, x = Net(step=False), keras.Input((None, 1, 6))
    bands = net.bands(x)
    model = keras.Model(x, [bands, net.average(bands, "average"), net.add(bands, net.average(bands, "again"), "add")])
    values = np.arange(24, dtype=np.float32).reshape(1, 4, 1, 6)
    turned, mean, total = model(values)
    assert (turned.numpy()[..., 0] == values[:, :, 0]).all()
    np.testing.assert_allclose(mean[0, :, 0, 0], values.mean(axis=3)[0, :, 0])
    np.testing.assert_allclose(total[..., 0], (values + values.mean(axis=3, keepdims=True))[:, :, 0])


def test_a_ring_buffer_keeps_the_zeros_at_the_ends_of_the_bands():
    net = Net(step=True)
    x = keras.Input((2, 9, 3), batch_size=1)
    net.conv(x, 4, (6, 4), "c", stride=(2, 2))
    (state,) = net.states
    assert state.entering.shape == state.leaving.shape == (1, 4, 9 + 3, 3)


def test_the_state_of_an_lstm_enters_and_leaves_or_stays_inside():
    x = keras.Input((2, 1, 5), batch_size=1)
    for fused, names in ((False, ["l_hidden_state", "l_cell_state"]), (True, [])):
        net = Net(step=True, fused=fused)
        assert net.lstm(x, 7, "l").shape == (1, 2, 1, 7)
        assert [state.name for state in net.states] == names


def test_an_architecture_may_lie_anywhere(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "STRIDE = 1\ndef build(net, x, n_labels):\n    return net.conv(x, n_labels, 3, 'label', bias=True)\n"
    )
    whole, _ = build_whole(load_architecture(str(path)).build, 40, 3, {})
    assert whole(np.zeros((1, 10, 40), np.float32)).shape == (1, 10, 3)


@pytest.mark.parametrize("name", ["ds_tc_resnets", "/nowhere/mine.py"])
def test_an_unknown_architecture_is_one_sentence(name):
    with pytest.raises(ConfigError, match="ds_tc_resnet"):
        load_architecture(name)
