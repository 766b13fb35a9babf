"""Prepared weights; those on a GPU by the code that runs there."""

import torch

from emfast.nn.prepared import _prepared_in_place as prepared
from emfast.nn.prepared import expire, forget
from emfast.nn.prepared import prepared as prepared_on_a_cpu


def halves(weight):
    """What is prepared, and a list of the calls that make it."""
    calls = []

    def make():
        calls.append(1)
        return weight.detach() / 2

    return make, calls


def test_what_is_kept_is_made_anew_in_place():
    weight = torch.nn.Parameter(torch.ones(3))
    make, calls = halves(weight)
    first = prepared([weight], "key", make)
    assert prepared([weight], "key", make) is first
    assert len(calls) == 1
    with torch.no_grad():
        weight.mul_(4)
    assert prepared([weight], "key", make) is first  # a graph that holds its address reads the new values
    assert first.tolist() == [2, 2, 2]
    assert len(calls) == 2


def test_a_write_through_data_shows_after_expire():
    weight = torch.nn.Parameter(torch.ones(3))
    make, _ = halves(weight)
    first = prepared([weight], "key", make)
    weight.data.mul_(4)
    assert prepared([weight], "key", make).tolist() == [0.5, 0.5, 0.5]
    expire([weight])
    assert prepared([weight], "key", make) is first
    assert first.tolist() == [2, 2, 2]
    forget([weight])
    assert prepared([weight], "key", make) is not first


def test_the_weight_itself_is_never_kept():
    weight = torch.nn.Parameter(torch.ones(3))
    kept = prepared([weight], "key", lambda: weight.detach())
    with torch.no_grad():
        weight.mul_(2)
    version = weight._version
    assert prepared([weight], "key", lambda: weight.detach()) is kept
    assert kept.data_ptr() != weight.data_ptr()
    assert weight._version == version


def test_what_inference_mode_prepares_serves_training_too():
    weight = torch.nn.Parameter(torch.ones(3))
    make, _ = halves(weight)
    with torch.inference_mode():
        first = prepared([weight], "key", make)
    assert not first.is_inference()
    with torch.no_grad():
        weight.mul_(4)
    assert prepared([weight], "key", make) is first


def test_on_a_cpu_all_memory_of_a_weight_is_looked_at_and_no_other():
    storage = torch.ones(8)
    for weight, place in ((storage[::3], 6), (storage[:1].expand(4), 0)):
        make, calls = halves(weight)
        prepared_on_a_cpu([weight], "key", make)
        storage.data[1] += 1  # a number beside the weight's
        prepared_on_a_cpu([weight], "key", make)
        assert weight.stride(0) or len(calls) == 1
        before = len(calls)
        storage.data[place] += 1
        assert torch.equal(prepared_on_a_cpu([weight], "key", make), weight / 2)
        assert len(calls) == before + 1


def test_inside_the_capture_of_a_graph_nothing_is_kept(monkeypatch):
    """What is made there has no values before the graph is replayed."""
    weight = torch.nn.Parameter(torch.ones(3))
    make, calls = halves(weight)
    monkeypatch.setattr("emfast.nn.prepared._is_captured", lambda tensor: True)
    assert prepared([weight], "key", make) is not prepared([weight], "key", make)
    assert len(calls) == 2
    monkeypatch.undo()
    assert prepared([weight], "key", make) is prepared([weight], "key", make)


def test_train_and_eval_expire_what_accelerated_modules_keep():
    import diffusers

    from emfast.adapters import accelerate

    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    weight = accelerate(unet).down_blocks[0].resnets[0].conv1.weight
    make, calls = halves(weight)
    prepared([weight], "key", make)
    unet.eval()
    prepared([weight], "key", make)
    assert len(calls) == 2
