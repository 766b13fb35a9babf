"""diffusers' schedulers, each beside the exact network of a Gaussian prior, by the conventions of diffusers."""

import diffusers
import pytest
import torch
from contracts import Gaussian, check_moments
from torch import nn

from emfast.diffusion import Denoiser, VPSchedule
from emfast.diffusion.schedulers import READERS, for_pipeline, load_scheduler, read_scheduler
from emfast.operators import Identity, Mask
from emfast.samplers import DAPS, DPS, MMPS, DiffPIR, PiGDM, Prior, ReverseFromObservation, WarmStart

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers with numpy 2

MASK = Mask(mask=torch.tensor([[1, 0, 1], [0, 1, 1]]))
BETAS = torch.linspace(1e-3, 0.3, 50).tolist()
PRIOR = Gaussian(VPSchedule.linear())


class Exact(nn.Module):
    """The network that predicts without error what one trained with a diffusers scheduler predicts, for Gaussian data.

    It reads its time and its input as the scheduler's documentation has them, not as emfast does.
    """

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.config = scheduler, scheduler.config

    def levels(self, time):
        """alpha and sigma of x_t."""
        if "sigma_data" in self.config:
            return torch.ones_like(time), torch.exp(4 * time)
        if not hasattr(self.scheduler, "alphas_cumprod") or self.config.get("use_flow_sigmas"):
            return 1 - time / self.config.num_train_timesteps, time / self.config.num_train_timesteps
        table = self.scheduler.alphas_cumprod.double().clamp(1e-12, 1)
        low = time.floor().long()
        ratio = torch.lerp(
            *(((1 - table) / table).log()[i.clamp(max=len(table) - 1)] for i in (low, low + 1)), time - low
        )
        return torch.sigmoid(-ratio).sqrt(), torch.sigmoid(ratio).sqrt()

    def mean(self, x, alpha, sigma):
        """E[x_0 | x_t]."""
        values, vectors = PRIOR.spectrum
        error = (x.flatten(1) - alpha * PRIOR.mean) @ vectors
        return (PRIOR.mean + (error * alpha * values / (alpha**2 * values + sigma**2)) @ vectors.T).reshape(x.shape)

    def forward(self, x, time):
        alpha, sigma = self.levels(time.double()[:, None])
        broad = alpha[..., None, None], sigma[..., None, None]
        if "sigma_data" in self.config:
            data, (_, noise) = self.config.sigma_data, broad
            norm = (noise**2 + data**2).sqrt()
            return (self.mean(x * norm, alpha, sigma) - (data / norm) ** 2 * x * norm) * norm / (noise * data)
        x_0 = self.mean(x, alpha, sigma)
        eps = (x - broad[0] * x_0) / broad[1]
        flow = type(self.scheduler).__name__.startswith("FlowMatch")
        kind = "flow_prediction" if flow else self.config.get("prediction_type", "epsilon")
        v = broad[0] * eps - broad[1] * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v, "flow_prediction": eps - x_0}[kind]


def available(name):
    """Whether a class of diffusers needs no package that is not there."""
    return "_backends" not in vars(getattr(diffusers, name))


def make(name, **config):
    """A scheduler by its name."""
    if not available(name):
        pytest.skip(f"{name} needs a package that is not there")
    return getattr(diffusers, name)(**config)


CASES = [
    *((name, {}) for name in READERS),
    *(("DDPMScheduler", {"prediction_type": kind}) for kind in ("v_prediction", "sample")),
    *(("DDIMScheduler", {"beta_schedule": kind}) for kind in ("scaled_linear", "squaredcos_cap_v2")),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("DDPMScheduler", {"trained_betas": BETAS}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "sample"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "num_train_timesteps": 100}),
    *(("EDMEulerScheduler", {"sigma_data": data, "sigma_max": 40.0}) for data in (0.25, 1.0)),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_posterior_mean_is_exact(name, config):
    scheduler = make(name, **config)
    network = Exact(scheduler)
    denoiser = Denoiser(network, scheduler)
    t = torch.cat((denoiser.schedule.times(20)[1:], denoiser.schedule.times_by_noise(20)))
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, len(t), *Gaussian.shape, dtype=torch.float64, generator=generator)
    alpha, sigma = denoiser.levels(t, x_0)
    x_t = alpha * x_0 + sigma * noise
    expected = network.mean(x_t, alpha[..., 0, 0], sigma[..., 0, 0])
    torch.testing.assert_close(denoiser(x_t, t), expected, rtol=1e-4, atol=1e-4)  # time goes by in float32
    assert float(denoiser.loss(expected, t, (x_t - alpha * expected) / sigma).max()) < 1e-6


PRIORS = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("EDMEulerScheduler", {"sigma_data": 1.0}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
]


@pytest.mark.parametrize(("name", "config"), PRIORS)
def test_diffusers_agrees(name, config):
    """Its own sampler finds the prior with these networks: they are what it takes them for."""
    scheduler = make(name, **config)
    network = Exact(scheduler)
    scheduler.set_timesteps(50)
    x = torch.randn(2000, *Gaussian.shape, generator=torch.Generator().manual_seed(0)).double()
    x = x * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else x
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t.expand(len(x))), t, x).prev_sample
    check_moments(x, PRIOR.mean, PRIOR.covariance, bias=0.1)


@pytest.mark.parametrize(("name", "config"), PRIORS)
def test_posterior_samples(name, config):
    scheduler, sigma, count = make(name, **config), 0.2, 2000
    x = torch.linspace(-1, 1.5, 6, dtype=torch.float64).reshape(1, *Gaussian.shape)
    y = MASK.observe(x, sigma)
    many = y.expand(count, *y.shape[1:])
    denoiser = Denoiser(Exact(scheduler), scheduler)
    samples = MMPS(steps=100, iterations=6, clip=False)(denoiser, many, MASK, sigma=sigma)
    check_moments(samples, *PRIOR.posterior(y, MASK, sigma), bias=0.05)
    y = Identity().observe(x, 0.5)
    many = y.expand(count, *y.shape[1:])
    samples = ReverseFromObservation(steps=100, clip=False)(denoiser, many, Identity(), sigma=0.5)
    check_moments(samples, *PRIOR.posterior(y, Identity(), 0.5), bias=0.03)


@pytest.mark.parametrize(
    "sampler",
    [
        DPS(steps=10),
        MMPS(steps=10),
        PiGDM(steps=10),
        DiffPIR(steps=10),
        DAPS(steps=5),
        Prior(steps=10, order=2),
        Prior(steps=10, eta=1.0),
        WarmStart(DPS(steps=10), torch.zeros(2, *Gaussian.shape), torch.arange(2), noise=1.0),
    ],
)
def test_every_sampler_takes_a_flow(sampler):
    """Though alpha is zero where it begins."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    x = sampler(Denoiser(Exact(scheduler), scheduler), torch.zeros(3, *Gaussian.shape), MASK, sigma=0.1)
    assert x.isfinite().all()
    assert float(x.abs().max()) < 3


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("ScoreSdeVeScheduler", {}, "known class, got ScoreSdeVeScheduler"),
        ("CMStochasticIterativeScheduler", {}, "known class, got CMStochasticIterativeScheduler"),
        ("LCMScheduler", {}, "known class, got LCMScheduler"),
        ("TCDScheduler", {}, "known class, got TCDScheduler"),
        ("FlowMatchLCMScheduler", {}, "known class, got FlowMatchLCMScheduler"),
        ("IPNDMScheduler", {}, "known class, got IPNDMScheduler"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "got flow_prediction"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "got v_prediction"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "got v_prediction"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type"),
    ],
)
def test_the_rest_is_refused_by_name(name, config, words):
    scheduler = make(name, **config)
    with pytest.raises((TypeError, ValueError), match=words):
        Denoiser(nn.Identity(), scheduler)
    with pytest.raises(ValueError, match=words.replace("known class", "that of a known scheduler")):
        load_scheduler({"_class_name": name, **config}, "scheduler_config.json")


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_folder_keeps_the_schedule(name, config, tmp_path):
    """What a run publishes is a scheduler that DDPMPipeline samples with, of the same table, whatever it began with."""
    scheduler = make(name, **config)
    scheduler.save_pretrained(tmp_path)
    loaded = load_scheduler(scheduler.load_config(tmp_path), str(tmp_path))
    before, after = read_scheduler(scheduler), read_scheduler(loaded)
    assert after[1:] == before[1:]
    assert type(after.schedule) is type(before.schedule)
    if isinstance(before.schedule, VPSchedule):
        assert type(loaded).__name__ in ("DDPMScheduler", "DDIMScheduler")
        torch.testing.assert_close(after.schedule.alphas_cumprod, before.schedule.alphas_cumprod, rtol=1e-6, atol=1e-7)
        assert type(for_pipeline(scheduler)) is type(loaded)
    else:
        assert vars(after.schedule) == vars(before.schedule)


def test_a_class_whose_package_is_missing():
    """LMSDiscreteScheduler wants scipy for its steps; the schedule does without."""
    config = {"_class_name": "LMSDiscreteScheduler", "beta_end": 0.012, "prediction_type": "v_prediction"}
    reading = read_scheduler(load_scheduler(config, "scheduler_config.json"))
    assert reading.prediction == "v"
    own = diffusers.DDPMScheduler(beta_end=0.012)
    assert torch.equal(reading.schedule.alphas_cumprod, VPSchedule(own.alphas_cumprod).alphas_cumprod)


def test_configs_that_are_none():
    for config, words in (
        ({}, "_class_name of s.json .* got none"),
        ({"_class_name": ["a"]}, "known scheduler"),
        ({"_class_name": "SchedulerMixin"}, "known scheduler"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "none"}, "config of a DDPMScheduler"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": "many"}, "config of a DDPMScheduler"),
        ({"_class_name": "DDPMScheduler", "beta_end": float("nan")}, r"s\.json to be the config .* decrease"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1}, r"s\.json to be the config .* T > 1"),
        ({"_class_name": "DDPMScheduler", "prediction_type": ["epsilon"]}, r"prediction_type of s\.json"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": "half"}, "sigma_data of s.json to be positive"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": -1.0}, "shift of s.json to be positive"),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": None}
            | {"prediction_type": "flow_prediction"},
            "flow_shift of s.json to be positive",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            load_scheduler(config, "s.json")
    with pytest.raises(TypeError, match="known class, got object"):
        Denoiser(nn.Identity(), object())
