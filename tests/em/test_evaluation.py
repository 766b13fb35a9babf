"""What is measured after a round: how its samples are made."""

import threading

import pytest
import torch

from emfast import random
from emfast.config import EvaluationConfig
from emfast.data import Images
from emfast.diffusion import Denoiser, VPSchedule
from emfast.em.evaluation import BATCH, Evaluator
from emfast.em.processes import Processes
from emfast.em.state import RunFolder
from emfast.samplers import Prior


def denoiser():
    model = Denoiser(torch.nn.Identity(), VPSchedule.linear())
    model.network.forward = lambda x, t: x / 2
    model.register_parameter("anchor", torch.nn.Parameter(torch.zeros(1)))  # its device
    return model


@pytest.mark.parametrize("order", [1, 2])
def test_samples_are_of_the_order_that_is_asked_for(order, tmp_path):
    config = EvaluationConfig(samples=4, steps=5, order=order, features="none")
    evaluator = Evaluator(config, None, (1, 4, 4))
    found, measured = evaluator.samples(denoiser(), RunFolder(tmp_path), 0, 0, lambda done, total: None)
    expected = [
        Prior(steps=5, order=k).sample(denoiser(), (1, 4, 4), ids=torch.arange(4), seed=random.derive(0, "samples"))
        for k in (1, 2)
    ]
    assert measured["fd"] is None
    assert torch.equal(found[:], expected[order - 1])
    assert not torch.equal(*expected)


class Killed(Exception):
    pass


def test_samples_drawn_before_an_interruption_are_not_drawn_again(tmp_path):
    config, folder = EvaluationConfig(samples=BATCH + 4, steps=2, pictures=12), RunFolder(tmp_path)
    references = Images(torch.linspace(-1, 1, 8 * 16 * 16).reshape(8, 1, 16, 16))
    evaluator = Evaluator(config, references, (1, 16, 16))

    def kill(done, total):
        if done > BATCH * config.steps:
            raise Killed

    with pytest.raises(Killed):
        evaluator.samples(denoiser(), folder, 1, 0, kill)
    first = folder.round(1) / "samples" / "shard-00000.safetensors"
    before = first.stat().st_mtime_ns
    seen = []
    found, measured = evaluator.samples(denoiser(), folder, 1, 0, lambda done, total: seen.append((done, total)))
    assert first.stat().st_mtime_ns == before
    assert seen[-1] == (4 * config.steps, 4 * config.steps)
    whole, again = evaluator.samples(denoiser(), RunFolder(tmp_path / "other"), 1, 0, lambda done, total: None)
    assert torch.equal(found[:], whole[:])
    assert measured == again


def test_references_that_come_later_have_the_samples_drawn_with_their_features(tmp_path):
    config, folder = EvaluationConfig(samples=4, steps=2), RunFolder(tmp_path)
    Evaluator(config, None, (1, 16, 16)).samples(denoiser(), folder, 1, 0, lambda done, total: None)
    references = Images(torch.linspace(-1, 1, 8 * 16 * 16).reshape(8, 1, 16, 16))
    _, measured = Evaluator(config, references, (1, 16, 16)).samples(denoiser(), folder, 1, 0, lambda *_: None)
    assert measured["features"] == "fashion-mnist"
    assert measured["fd"] > 0


def test_without_a_distance_only_what_the_pictures_show_is_drawn(tmp_path):
    config = EvaluationConfig(samples=64, steps=1, pictures=3)
    for references, count in ((None, 9), (Images(torch.rand(4, 1, 16, 16) * 2 - 1), 64)):
        evaluator, folder = Evaluator(config, references, (1, 16, 16)), RunFolder(tmp_path / str(count))
        found, _ = evaluator.samples(denoiser(), folder, 1, 0, lambda done, total: None)
        assert len(found) == evaluator.count == count


def test_two_processes_draw_the_samples_together(tmp_path):
    config = EvaluationConfig(samples=4 * BATCH, steps=2, features="none", pictures=23)
    drawn, found = [[], []], [None, None]

    class Two(Processes):
        def wait(self):
            barrier.wait(60)

    def run(rank):
        evaluator = Evaluator(config, None, (1, 4, 4), processes=Two(rank, 2))
        draw = evaluator._draw

        def meet(denoiser, key, ids, callback):
            if not drawn[rank]:
                barrier.wait(60)  # both have one
            drawn[rank] += ids.tolist()
            return draw(denoiser, key, ids, callback)

        evaluator._draw = meet
        found[rank] = evaluator.samples(denoiser(), RunFolder(tmp_path), 1, 0, lambda done, total: None)[0][:]

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(drawn)
    assert {*drawn[0], *drawn[1]} == set(range(config.samples))
    alone = Evaluator(config, None, (1, 4, 4)).samples(denoiser(), RunFolder(tmp_path / "alone"), 1, 0, lambda *_: None)
    assert torch.equal(found[0], alone[0][:])
