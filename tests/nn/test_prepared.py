"""Prepared weights follow every change of the weights: on a CPU in each call, on a GPU from block to block."""

import pytest
import torch

from emfast.nn import prepared as module
from emfast.nn.prepared import forget, prepared, unchanged


def halved(weights):
    """What is made, of one weight or several."""
    return sum(weight.detach() / 2 for weight in weights)


def made(*weights):
    """What a call gets."""
    return prepared(weights).get(weights, halved)


def noted(calls):
    """A function to prepare by, that notes its calls."""

    def make(weights):
        calls.append(1)
        return halved(weights)

    return make


@pytest.fixture
def like_a_gpu(monkeypatch):
    """CPU tensors are treated as those of a GPU."""
    monkeypatch.setattr(module, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(module, "_is_captured", lambda tensor: False)
    monkeypatch.setattr(module, "_settle", lambda tensor: None)


def swap_memory(weight):
    """Another memory, as .to() and .half() give it."""
    weight.data = weight.data.clone() * 3


def transpose(weight):
    """The same memory, read in another order."""
    weight.data = weight.data.transpose(2, 3)


WRITES = {
    "in place": lambda w: w.detach().mul_(3),
    "whole, through data": lambda w: w.data.mul_(3),
    "copied": lambda w: w.data.copy_(torch.full_like(w, 7)),
    "one output channel": lambda w: w.data[1].zero_(),
    "one input channel": lambda w: w.data[:, 2].mul_(3),
    "one element": lambda w: w.data.view(-1)[w.numel() // 3].add_(1),
    "one bit": lambda w: w.data.view(torch.int32).view(-1)[5].bitwise_xor_(1),
    "two elements swapped": lambda w: w.data.view(-1).__setitem__([3, 11], w.data.view(-1)[[11, 3]]),
    "foreach": lambda w: torch._foreach_mul_([w.data], 3),
    "numpy": lambda w: w.detach().numpy().__setitem__((0, 0, 0, 0), 5),
    "other memory": swap_memory,
    "transposed": transpose,
    "last element": lambda w: w.data.view(-1)[-1].add_(1),
}


def weight_of(*shape):
    """A weight without two equal numbers."""
    count = torch.Size(shape).numel()
    return torch.nn.Parameter(torch.arange(1.0, count + 1).reshape(shape))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("extension", [True, False], ids=["compiled", "not compiled"])
def test_every_write_is_followed(write, extension, monkeypatch):
    if not extension:
        monkeypatch.setattr(module, "extension_error", lambda: "not compiled")
    weight = weight_of(4, 5, 3, 3)
    first = made(weight)
    assert made(weight) is first
    WRITES[write](weight)
    assert torch.equal(made(weight), weight / 2)
    assert made(weight) is not first


def test_what_is_made_of_weights_swapped_meanwhile_is_not_kept():
    """As a backward pass does, which asks for other forms than the forward pass did."""
    weight = weight_of(4, 5, 3, 3)
    entry, before = prepared((weight,)), weight.detach().clone()
    entry.get((weight,), halved)
    weight.data.mul_(3)
    assert torch.equal(entry.get((weight,), lambda weights: weights[0] * 2), before * 6)
    calls = []
    make = noted(calls)
    entry.get((weight,), make)
    weight.data.copy_(before)
    assert prepared((weight,)) is entry
    assert torch.equal(entry.get((weight,), make), before / 2)
    assert torch.equal(entry.get((weight,), make), before / 2)
    assert len(calls) == 2


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 65536, 65537, 3 * 65536 + 5])
def test_the_checksum_sees_every_byte(size):
    """At the borders of what one thread takes at a time, too."""
    weight = weight_of(size)
    seen = {module._checksum(weight)}
    places = {0, size // 2, size - 1, min(size - 1, 65535), min(size - 1, 65536)}
    for place in places:
        weight.data.view(torch.uint8)[4 * place + 3] ^= 1
        seen.add(module._checksum(weight))
    assert len(seen) == 1 + len(places)


def test_on_a_cpu_all_memory_of_a_weight_is_looked_at_and_no_other():
    storage = torch.ones(8)
    for weight, place in ((storage[::3], 6), (storage[:1].expand(4), 0)):
        first = made(weight)
        storage.data[7] += 1  # a number behind the weight's
        assert made(weight) is first
        storage.data[place] += 1
        assert torch.equal(made(weight), weight / 2)


def test_several_weights():
    weights = weight_of(3), weight_of(3)
    first = made(*weights)
    assert made(*weights) is first
    weights[1].data[2] += 1
    assert torch.equal(made(*weights), halved(weights))
    assert torch.equal(made(weights[0]), weights[0] / 2)  # the first of them, alone


def test_in_a_block_weights_are_looked_at_once():
    weight = weight_of(3)
    first = made(weight)
    weight.data.mul_(2)
    with unchanged([weight]), unchanged([weight]):
        second = made(weight)
        assert torch.equal(second, weight / 2)
        weight.data.mul_(2)
        assert made(weight) is second
        weight.detach().mul_(2)  # a change of version is always seen
        third = made(weight)
        assert torch.equal(third, weight / 2)
        weight.data.mul_(2)
    assert torch.equal(made(weight), weight / 2)
    assert first is not second is not third
    assert not module._blocks


def test_a_new_block_looks_again():
    weight, calls = weight_of(3), []
    make = noted(calls)
    for _ in range(2):
        with unchanged([weight]):
            prepared([weight]).get([weight], make)
            prepared([weight]).get([weight], make)
    assert len(calls) == 1
    weight.data[0] = 7
    with unchanged([weight]):
        assert prepared([weight]).get([weight], make)[0] == 3.5


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("write", [name for name in WRITES if name != "other memory"])
def test_on_a_gpu_it_keeps_its_address_from_block_to_block(write):
    """A graph that holds it reads the new values."""
    weight = weight_of(4, 5, 3, 3)
    with unchanged([weight]):
        first = made(weight)
        assert made(weight) is first
    WRITES[write](weight)
    with unchanged([weight]):
        assert torch.equal(first, weight / 2)
        assert made(weight) is first


@pytest.mark.usefixtures("like_a_gpu")
def test_on_a_gpu_nothing_is_kept_between_calls():
    weight = weight_of(3)
    first = made(weight)
    assert made(weight) is not first
    weight.data.mul_(2)
    assert torch.equal(made(weight), weight / 2)


@pytest.mark.usefixtures("like_a_gpu")
def test_a_call_and_its_backward_pass_share_what_was_made():
    weight, calls = weight_of(3), []
    kept, make = prepared([weight]), noted(calls)
    assert kept.get([weight], make) is kept.get([weight], make)
    assert len(calls) == 1


@pytest.mark.usefixtures("like_a_gpu")
def test_the_weight_itself_is_never_kept():
    weight = weight_of(3)

    def same(weights):
        return weights[0].detach()

    with unchanged([weight]):
        kept = prepared([weight]).get([weight], same)
    assert kept.data_ptr() != weight.data_ptr()


@pytest.mark.usefixtures("like_a_gpu")
def test_memory_that_moved_is_made_anew():
    """`to(dtype)`, `half()` and assignments to `.data`: whoever holds a graph of the old memory has to look."""
    weight = weight_of(3)
    with unchanged([weight]):
        made(weight)
    weight.data = weight_of(5).data
    with unchanged([weight]):
        assert torch.equal(made(weight), weight / 2)


@pytest.mark.usefixtures("like_a_gpu")
def test_inside_the_capture_of_a_graph_nothing_is_kept(monkeypatch):
    """What is made there has no values before the graph is replayed."""
    weight, calls = weight_of(3), []
    make = noted(calls)
    with unchanged([weight]):
        monkeypatch.setattr(module, "_is_captured", lambda tensor: True)
        prepared([weight]).get([weight], make)
        prepared([weight]).get([weight], make)
        assert len(calls) == 2
        monkeypatch.setattr(module, "_is_captured", lambda tensor: False)
        first = prepared([weight]).get([weight], make)
        assert prepared([weight]).get([weight], make) is first


def test_what_inference_mode_prepares_serves_training_too():
    weight = weight_of(3)
    with torch.inference_mode():
        first = made(weight)
    assert not first.is_inference()
    assert made(weight) is first


def test_forgotten_weights():
    weight = weight_of(3)
    first = made(weight)
    forget([weight])
    assert made(weight) is not first


def test_nothing_outlives_its_weights():
    weight = weight_of(3)
    made(weight)
    before = len(module._memories[-1])
    del weight
    assert len(module._memories[-1]) == before - 1
