"""The table of ways: what is taken, why, and that nothing decides beside it."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from contracts import replace_way

import emfast
from emfast.dispatch import TABLE, Way, backend, device_type, pick, recorded, target
from emfast.info import ways

PACKAGE = Path(emfast.__file__).parent


@pytest.fixture
def subject(monkeypatch):
    """Three ways of something that take numbers up to 1, up to 10, and all."""
    few = Way("few", None, ("cpp",), unsupported=lambda x: None if x <= 1 else f"{x} > 1", traceable=False)
    some = Way("some", None, ("cpp", "triton"), missing=lambda device: device, slower=lambda x: x > 10)
    rest = Way("rest", None)
    monkeypatch.setitem(TABLE, "subject", (few, some, rest))
    return "subject"


def test_the_first_way_that_serves_is_taken(subject, monkeypatch):
    assert pick(subject, "", 1).name == "few"
    assert pick(subject, "", 2).name == "some"
    assert pick(subject, "", 11).name == "rest"
    assert pick(subject, "not on it", 2).name == "rest"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert pick(subject, "", 1).name == "some"


def test_a_forced_backend_leaves_out_the_ways_of_others(subject):
    for forced, name in (("cpp", "few"), ("triton", "some"), ("reference", "rest")):
        with backend(forced):
            assert pick(subject, "", 1).name == name


def test_choices_are_recorded_with_the_reasons(subject):
    with recorded() as choices:
        pick(subject, "", 2)
        pick(subject, "absent", 11)
        with backend("triton"):
            pick(subject, "", 1)
    assert [choice.way for choice in choices] == ["some", "rest", "some"]
    assert choices[0].reasons == {"few": "2 > 1"}
    assert choices[1].reasons == {"few": "11 > 1", "some": "absent"}
    assert choices[2].reasons == {"few": "backend 'triton' is forced"}
    pick(subject, "", 1)
    assert len(choices) == 3


def test_layers_choose_for_a_target():
    x = torch.ones(1)
    with target("cuda"):
        assert device_type(x) == "cuda"
    assert device_type(x) == "cpu"


def test_blocks_that_record_may_lie_in_each_other():
    x, kernel = torch.randn(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    with recorded() as outer:
        with recorded() as inner:
            pass  # as many choices as in the outer one: none
        emfast.ops.blur(x, kernel)
        with recorded() as inner:
            emfast.ops.blur(2 * x, kernel)  # of tensors, which are not simply equal
        emfast.ops.blur(x, kernel)
    assert (len(outer), len(inner)) == (2, 1)


def test_a_forced_reference_holds_for_layers_too(monkeypatch):
    called = []
    for name in ("AMX", "Winograd", "oneDNN"):
        replace_way(monkeypatch, "convolution layer", name, unsupported=lambda *args, name=name: called.append(name))
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    with backend("reference"):  # sums of 144 terms, in an order of their own
        torch.testing.assert_close(emfast.nn.convolution(x, weight, padding=1), expected, rtol=1e-5, atol=1e-4)
    assert not called


def test_every_layer_of_a_network_says_which_way_it_goes():
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1}
    kinds = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    network = emfast.accelerate(diffusers.UNet2DModel(**sizes, **kinds))
    found = ways(network, (1, 8, 8))
    convolutions = {row["layer"] for row in found if row["what"] == "convolution layer"}
    assert {"down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.to_q", "conv_out"} <= convolutions
    assert [row["layer"] for row in found if row["what"] == "attention layer"]
    for row in found:
        names = [way.name for way in TABLE[row["what"]]]
        assert list(row["not"]) == names[: names.index(row["way"])]


def test_a_network_that_raises_stays_in_training_mode():
    network = torch.nn.Conv2d(1, 1, 1).train()
    with pytest.raises(TypeError):
        ways(network, (1, 8, 8))  # which takes no time
    assert network.training


def test_one_autograd_function_computes_convolutions():
    files = sorted((PACKAGE / "nn").rglob("*.py"))
    found = [path.name for path in files if "torch.autograd.Function" in path.read_text()]
    assert found == ["attention.py", "convolution.py"]


def test_nothing_is_mocked_in_the_library():
    assert not [path for path in PACKAGE.rglob("*.py") if "mock" in path.read_text()]


@pytest.mark.parametrize("package", ["nn", "adapters", "ops", "samplers", "em"])
def test_modules_do_not_import_each_other_in_a_circle(package):
    """Not even inside of functions."""
    trees = {}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text())
        tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # of type checkers
        trees[name] = ast.walk(tree)
    known = {}
    for name, nodes in trees.items():
        pairs = [(n.module, alias.name) for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names]
        found = {f"{module}.{part}" if f"{module}.{part}" in trees else module for module, part in pairs}
        known[name] = (found & trees.keys()) - {name}
    while known:
        leaves = {name for name, found in known.items() if not found}
        assert leaves, f"a circle among {sorted(known)}"
        known = {name: found - leaves for name, found in known.items() if name not in leaves}


def test_the_table_is_filled_where_the_ways_are():
    assert sys.modules["emfast.dispatch"].TABLE is TABLE
    assert {"convolution layer", "attention layer", "group norm layer", "group norm fork"} <= TABLE.keys()
