"""A stand-in for EDM's networks: their names, shapes and order of operations, so that their checkpoints would fit.

Written from the paper (arXiv 2206.00364). Its classes live in a module called `training.networks`, as the originals do,
because that is how they are recognised. `persistent` stands for EDM's decorator, by which a pickle brings its classes.
"""

import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import silu

MODULE = "training.networks"
CLASSES = {}


def rebuild(name, state):
    """Unpickles what `persistent` has pickled."""
    network = CLASSES[name].__new__(CLASSES[name])
    network.__dict__.update(state)
    return network


def persistent(kind):
    """Derives a class whose objects pickle in their own way, and which pickle cannot find by name."""

    class Decorator(kind):
        def __reduce__(self):
            return rebuild, (kind.__name__, super().__reduce__()[2])

    Decorator.__name__, Decorator.__module__ = kind.__name__, MODULE
    CLASSES[kind.__name__] = Decorator
    return Decorator


def random(*shape, gain=1.0):
    """Weights; the original's are zero in places, where these are small, so that every part counts."""
    return nn.Parameter(torch.randn(*shape) * gain / max(1, np.prod(shape[1:])) ** 0.5)


@persistent
class Linear(nn.Module):
    """Weights in the dtype of the input."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = random(out_features, in_features)
        self.bias = random(out_features, gain=0.1) if bias else None

    def forward(self, x):
        x = x @ self.weight.to(x.dtype).t()
        return x if self.bias is None else x.add_(self.bias.to(x.dtype))


@persistent
class Conv2d(nn.Module):
    """A convolution (of a size above zero) after resampling by a separable filter, or before (fused, downwards)."""

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel,
        bias=True,
        up=False,
        down=False,
        resample_filter=(1, 1),
        fused_resample=False,
        gain=1.0,
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight = random(out_channels, in_channels, kernel, kernel, gain=gain) if kernel else None
        self.bias = random(out_channels, gain=0.1) if kernel and bias else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        taps = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        self.register_buffer("resample_filter", taps if up or down else None)

    def forward(self, x):
        w = None if self.weight is None else self.weight.to(x.dtype)
        f = None if self.resample_filter is None else self.resample_filter.to(x.dtype)
        w_pad = 0 if w is None else w.shape[-1] // 2
        f_pad = 0 if f is None else (f.shape[-1] - 1) // 2
        channels = self.in_channels
        if self.fused_resample and self.down and w is not None:
            x = F.conv2d(x, w, padding=w_pad + f_pad)
            x = F.conv2d(x, f.tile([self.out_channels, 1, 1, 1]), groups=self.out_channels, stride=2)
        else:
            if self.up:
                taps = f.mul(4).tile([channels, 1, 1, 1])
                x = F.conv_transpose2d(x, taps, groups=channels, stride=2, padding=f_pad)
            if self.down:
                x = F.conv2d(x, f.tile([channels, 1, 1, 1]), groups=channels, stride=2, padding=f_pad)
            if w is not None:
                x = F.conv2d(x, w, padding=w_pad)
        return x if self.bias is None else x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))


@persistent
class GroupNorm(nn.Module):
    """At least four channels in a group."""

    def __init__(self, num_channels, num_groups=32, min_channels_per_group=4, eps=1e-5):
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        self.eps = eps
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(num_channels))
        self.bias = nn.Parameter(0.1 * torch.randn(num_channels))

    def forward(self, x):
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, num_groups=self.num_groups, weight=weight, bias=bias, eps=self.eps)


class AttentionOp:
    """The weights of attention, in float32."""

    @staticmethod
    def apply(q, k):
        scores = torch.einsum("ncq,nck->nqk", q.float(), (k / np.sqrt(k.shape[1])).float())
        return scores.softmax(dim=2).to(q.dtype)


@persistent
class UNetBlock(nn.Module):
    """Two convolutions with the embedding between, then perhaps attention."""

    def __init__(
        self,
        in_channels,
        out_channels,
        emb_channels,
        up=False,
        down=False,
        attention=False,
        num_heads=None,
        channels_per_head=64,
        dropout=0,
        skip_scale=1,
        eps=1e-5,
        resample_filter=(1, 1),
        resample_proj=False,
        adaptive_scale=True,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.emb_channels = in_channels, out_channels, emb_channels
        heads = out_channels // channels_per_head if num_heads is None else num_heads
        self.num_heads = heads if attention else 0
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        resample = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, **resample)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, gain=0.5)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, **resample)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = Conv2d(out_channels, out_channels, 1, gain=0.5)

    def forward(self, x, emb):
        orig = x
        x = self.conv0(silu(self.norm0(x)))
        params = self.affine(emb).unsqueeze(2).unsqueeze(3).to(x.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            x = silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = silu(self.norm1(x.add_(params)))
        x = self.conv1(F.dropout(x, p=self.dropout, training=self.training))
        x = x.add_(orig if self.skip is None else self.skip(orig)) * self.skip_scale
        if self.num_heads:
            packed = self.qkv(self.norm2(x)).reshape(len(x) * self.num_heads, x.shape[1] // self.num_heads, 3, -1)
            q, k, v = packed.unbind(2)
            a = torch.einsum("nqk,nck->ncq", AttentionOp.apply(q, k), v)
            x = self.proj(a.reshape(*x.shape)).add_(x) * self.skip_scale
        return x


@persistent
class PositionalEmbedding(nn.Module):
    """Cosines, then sines."""

    def __init__(self, num_channels, max_positions=10000, endpoint=False):
        super().__init__()
        self.num_channels, self.max_positions, self.endpoint = num_channels, max_positions, endpoint

    def forward(self, x):
        half = self.num_channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device) / (half - (1 if self.endpoint else 0))
        x = torch.outer(x, ((1 / self.max_positions) ** steps).to(x.dtype))
        return torch.cat([x.cos(), x.sin()], dim=1)


@persistent
class FourierEmbedding(nn.Module):
    """Random frequencies."""

    def __init__(self, num_channels, scale=16):
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, x):
        x = torch.outer(x, (2 * np.pi * self.freqs).to(x.dtype))
        return torch.cat([x.cos(), x.sin()], dim=1)


@persistent
class SongUNet(nn.Module):
    """DDPM++ (the defaults) and NCSN++."""

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        channel_mult_emb=4,
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.10,
        label_dropout=0,
        embedding_type="positional",
        channel_mult_noise=1,
        encoder_type="standard",
        decoder_type="standard",
        resample_filter=(1, 1),
    ):
        super().__init__()
        self.label_dropout = label_dropout
        size, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        options = {"emb_channels": size, "num_heads": 1, "dropout": dropout, "skip_scale": np.sqrt(0.5), "eps": 1e-6}
        options |= {"resample_filter": resample_filter, "resample_proj": True, "adaptive_scale": False}
        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        self.map_label = Linear(label_dim, noise) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(noise, size), Linear(size, size)

        self.enc = nn.ModuleDict()
        widths = []
        cout = caux = in_channels
        for level, mult in enumerate(channel_mult):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == 0:
                self.enc[f"{at}_conv"], cout = Conv2d(cout, model_channels, 3), model_channels
            else:
                self.enc[f"{at}_down"] = UNetBlock(cout, cout, down=True, **options)
                resample = {"down": True, "resample_filter": resample_filter}
                if encoder_type == "skip":
                    self.enc[f"{at}_aux_down"] = Conv2d(caux, caux, 0, **resample)
                    self.enc[f"{at}_aux_skip"] = Conv2d(caux, cout, 1)
                if encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Conv2d(caux, cout, 3, fused_resample=True, **resample)
                    caux = cout
            widths.append(cout)
            for idx in range(num_blocks):
                block = UNetBlock(cout, model_channels * mult, attention=attention, **options)
                self.enc[f"{at}_block{idx}"], cout = block, model_channels * mult
                widths.append(cout)

        self.dec = nn.ModuleDict()
        last = len(channel_mult) - 1
        for level, mult in reversed(list(enumerate(channel_mult))):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            attention = img_resolution >> level in attn_resolutions
            if level == last:
                self.dec[f"{at}_in0"] = UNetBlock(cout, cout, attention=True, **options)
                self.dec[f"{at}_in1"] = UNetBlock(cout, cout, **options)
            else:
                self.dec[f"{at}_up"] = UNetBlock(cout, cout, up=True, **options)
            for idx in range(num_blocks + 1):
                cin, cout = cout + widths.pop(), model_channels * mult
                attends = attention and idx == num_blocks
                self.dec[f"{at}_block{idx}"] = UNetBlock(cin, cout, attention=attends, **options)
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < last:
                    aux = Conv2d(out_channels, out_channels, 0, up=True, resample_filter=resample_filter)
                    self.dec[f"{at}_aux_up"] = aux
                self.dec[f"{at}_aux_norm"] = GroupNorm(cout, eps=1e-6)
                self.dec[f"{at}_aux_conv"] = Conv2d(cout, out_channels, 3, gain=0.5)

    def forward(self, x, noise_labels, class_labels, augment_labels=None):
        emb = self.map_noise(noise_labels)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(*emb.shape)
        if self.map_label is not None:
            tmp = class_labels
            if self.training and self.label_dropout:
                tmp = tmp * (torch.rand([x.shape[0], 1]) >= self.label_dropout).to(tmp.dtype)
            emb = emb + self.map_label(tmp * np.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = silu(self.map_layer1(silu(self.map_layer0(emb))))

        skips, aux = [], x
        for name, block in self.enc.items():
            if "aux_down" in name:
                aux = block(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + block(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + block(aux)) / np.sqrt(2)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)
        aux = tmp = None
        for name, block in self.dec.items():
            if "aux_up" in name:
                aux = block(aux)
            elif "aux_norm" in name:
                tmp = block(x)
            elif "aux_conv" in name:
                tmp = block(silu(tmp))
                aux = tmp if aux is None else tmp + aux
            else:
                x = x if x.shape[1] == block.in_channels else torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        return aux


@persistent
class DhariwalUNet(nn.Module):
    """ADM."""

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        augment_dim=0,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        channel_mult_emb=4,
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.10,
        label_dropout=0,
    ):
        super().__init__()
        self.label_dropout = label_dropout
        size = model_channels * channel_mult_emb
        options = {"emb_channels": size, "channels_per_head": 64, "dropout": dropout}
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0, self.map_layer1 = Linear(model_channels, size), Linear(size, size)
        self.map_label = Linear(label_dim, size, bias=False) if label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        widths, cout = [], in_channels
        for level, mult in enumerate(channel_mult):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == 0:
                self.enc[f"{at}_conv"], cout = Conv2d(cout, model_channels * mult, 3), model_channels * mult
            else:
                self.enc[f"{at}_down"] = UNetBlock(cout, cout, down=True, **options)
            widths.append(cout)
            for idx in range(num_blocks):
                attends = img_resolution >> level in attn_resolutions
                block = UNetBlock(cout, model_channels * mult, attention=attends, **options)
                self.enc[f"{at}_block{idx}"], cout = block, model_channels * mult
                widths.append(cout)
        for level, mult in reversed(list(enumerate(channel_mult))):
            at = f"{img_resolution >> level}x{img_resolution >> level}"
            if level == len(channel_mult) - 1:
                self.dec[f"{at}_in0"] = UNetBlock(cout, cout, attention=True, **options)
                self.dec[f"{at}_in1"] = UNetBlock(cout, cout, **options)
            else:
                self.dec[f"{at}_up"] = UNetBlock(cout, cout, up=True, **options)
            for idx in range(num_blocks + 1):
                cin, cout = cout + widths.pop(), model_channels * mult
                attends = img_resolution >> level in attn_resolutions
                self.dec[f"{at}_block{idx}"] = UNetBlock(cin, cout, attention=attends, **options)
        self.out_norm = GroupNorm(cout)
        self.out_conv = Conv2d(cout, out_channels, 3, gain=0.5)

    def forward(self, x, noise_labels, class_labels, augment_labels=None):
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None:
            tmp = class_labels
            if self.training and self.label_dropout:
                tmp = tmp * (torch.rand([x.shape[0], 1]) >= self.label_dropout).to(tmp.dtype)
            emb = emb + self.map_label(tmp)
        emb = silu(emb)
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            x = x if x.shape[1] == block.in_channels else torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(silu(self.out_norm(x)))


class Precond(nn.Module):
    """What the preconditionings share: the network, in float16 or float32, and the labels."""

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, model_type="SongUNet", **options):
        super().__init__()
        self.label_dim, self.use_fp16 = label_dim, use_fp16
        size = {"in_channels": img_channels, "out_channels": img_channels, "label_dim": label_dim}
        self.model = CLASSES[model_type](img_resolution, **size, **options)

    def run(self, x, noise, class_labels, options):
        """Returns the raw output; its dtype is the input's, as the original asserts."""
        dtype = torch.float16 if self.use_fp16 else torch.float32  # the original: on CUDA only
        out = self.model(x.to(dtype), noise.flatten(), class_labels=class_labels, **options)
        assert out.dtype == dtype
        return out.float()

    def round_sigma(self, sigma):
        """The nearest noise level that the network knows: every one."""
        return torch.as_tensor(sigma)


@persistent
class EDMPrecond(Precond):
    """EDM's own preconditioning."""

    def forward(self, x, sigma, class_labels=None, **options):
        sigma = sigma.float().reshape(-1, 1, 1, 1)
        norm = (sigma**2 + 0.25).sqrt()
        out = self.run(x.float() / norm, sigma.log() / 4, class_labels, options)
        return 0.25 / norm**2 * x.float() + 0.5 * sigma / norm * out


@persistent
class VPPrecond(Precond):
    """That of variance-preserving diffusion."""

    def forward(self, x, sigma, class_labels=None, **options):
        sigma = sigma.float().reshape(-1, 1, 1, 1)
        time = ((0.1**2 + 2 * 19.9 * (1 + sigma**2).log()).sqrt() - 0.1) / 19.9
        return x.float() - sigma * self.run(x.float() / (sigma**2 + 1).sqrt(), 999 * time, class_labels, options)


def install():
    """Puts the classes into a module of the original's name."""
    for path in (MODULE.split(".")[0], MODULE):
        sys.modules.setdefault(path, types.ModuleType(path))
    for name, kind in CLASSES.items():
        setattr(sys.modules[MODULE], name, kind)


install()
