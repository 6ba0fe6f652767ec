"""Are a layer's own float32 products on a GPU as exact as its recurrence, and no others?"""

import threading
from types import SimpleNamespace

import pytest
import torch

import bptt
from bptt.recurrence import precision
from bptt.recurrence.precision import as_recurrence, product_on_gpu

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(params=["tf32", "ieee"])
def recurrent(request):
    """How recurrences multiply float32; products do as torch has them by default."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = request.param
    yield request.param
    torch.backends.cudnn.rnn.fp32_precision = before


@pytest.fixture
def seen(monkeypatch):
    """The flag as every product of two matrices found it."""
    found = []

    def recorded(owner, name):
        inner = getattr(owner, name)

        def product(*arguments):
            found.append(MATMUL.fp32_precision)
            return inner(*arguments)

        monkeypatch.setattr(owner, name, product)

    recorded(torch.nn.functional, "linear")
    recorded(torch, "addmm")
    recorded(torch.Tensor, "__matmul__")
    return found


def expected(recurrent):
    return "tf32" if recurrent == "tf32" else MATMUL.fp32_precision


def test_products_of_a_backward_pass(recurrent, seen):
    a, b, start = torch.randn(4, 5), torch.randn(5, 6), torch.randn(4, 6)
    torch.testing.assert_close(product_on_gpu(a, b, start), start + torch.mm(a, b))
    torch.testing.assert_close(product_on_gpu(a, b, None), torch.mm(a, b))
    assert seen == [expected(recurrent)] * 2


def test_a_layer_has_one_precision(recurrent, seen):
    """The loop's is what gpu.number_of says; the projection before it has the same."""
    layer, x = bptt.LSTM(8, 8, num_layers=2), torch.randn(3, 2, 8)
    with bptt.backend("cuda"):
        layer(x)[0].sum().backward()
    loop = bptt.engines.gpu.number_of(torch.float32)
    assert loop == {"tf32": "tf32", "ieee": "fp32"}[recurrent]
    assert seen and set(seen) == {expected(recurrent)}


def test_the_flag_is_put_back(recurrent):
    before = MATMUL.fp32_precision
    with pytest.raises(ValueError, match="any"), as_recurrence(torch.float32):
        raise ValueError("any")
    with as_recurrence(torch.float32), as_recurrence(torch.float32):
        assert MATMUL.fp32_precision == expected(recurrent)
    assert MATMUL.fp32_precision == before
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with as_recurrence(dtype):
            assert MATMUL.fp32_precision == before


def test_products_of_every_sample_on_a_gpu(recurrent):
    """einsum's, of per-sample gradients; elsewhere nobody touches the flag."""
    before = MATMUL.fp32_precision
    for device, expects in (("cuda", expected(recurrent)), ("cpu", before)):
        with precision.around(SimpleNamespace(device=torch.device(device), dtype=torch.float32)):
            assert MATMUL.fp32_precision == expects
    assert MATMUL.fp32_precision == before


def test_threads_that_overlap_put_it_back():
    """The first to come is the first to go; the second must not remember the first's."""
    before, entered, left = MATMUL.fp32_precision, threading.Event(), threading.Event()
    assert precision.is_tf32()

    def other():
        with as_recurrence(torch.float32):
            entered.set()
            assert left.wait(10)

    thread = threading.Thread(target=other)
    with as_recurrence(torch.float32):
        thread.start()
        assert entered.wait(10)
    assert MATMUL.fp32_precision == "tf32"
    left.set()
    thread.join()
    assert MATMUL.fp32_precision == before
