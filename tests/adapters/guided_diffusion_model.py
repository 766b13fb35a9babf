"""A stand-in for guided-diffusion's U-Net: its names, shapes and order of operations, so that checkpoints would fit.

Written from the papers (arXiv 2102.09672, 2105.05233). Its classes live in modules called `guided_diffusion.unet` and
`guided_diffusion.nn`, as the originals do, because that is how they are recognised.
"""

import math
import sys
import types

import torch
import torch as th
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint as torch_checkpoint

PACKAGE = "guided_diffusion"


def timestep_embedding(timesteps, dim):
    """Cosines, then sines."""
    half = dim // 2
    freqs = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    phases = torch.outer(timesteps.float(), freqs)
    parts = [phases.cos(), phases.sin(), phases.new_zeros(len(phases), dim % 2)]
    return torch.cat(parts, dim=-1)


def checkpoint(func, inputs, params, flag):
    """Recomputes in the backward if asked to."""
    return torch_checkpoint.checkpoint(func, *inputs, use_reentrant=False) if flag else func(*inputs)


class GroupNorm32(nn.GroupNorm):
    """In float32 whatever the input."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def normalization(channels):
    """32 groups always, in the original; fewer here, for small networks."""
    return GroupNorm32(32 if channels % 32 == 0 else math.gcd(channels, 8), channels)


def zero_module(module):
    """The original's parameters are zero at first; here they are small, so that every part counts."""
    for p in module.parameters():
        p.detach().mul_(0.5)
    return module


class TimestepBlock(nn.Module):
    """Takes the embedding too."""


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """Hands the embedding to those who take it."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Nearest neighbours, then perhaps a convolution."""

    def __init__(self, channels, use_conv, dims=2, out_channels=None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.use_conv, self.dims = use_conv, dims
        if use_conv:
            self.conv = nn.Conv2d(self.channels, self.out_channels, 3, padding=1)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """A convolution of stride 2, or a mean."""

    def __init__(self, channels, use_conv, dims=2, out_channels=None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.use_conv, self.dims = use_conv, dims
        conv = nn.Conv2d(self.channels, self.out_channels, 3, stride=2, padding=1) if use_conv else None
        self.op = conv or nn.AvgPool2d(kernel_size=2, stride=2)

    def forward(self, x):
        return self.op(x)


class ResBlock(TimestepBlock):
    """Two convolutions with the embedding between."""

    def __init__(
        self,
        channels,
        emb_channels,
        dropout,
        out_channels=None,
        use_conv=False,
        use_scale_shift_norm=False,
        use_checkpoint=False,
        up=False,
        down=False,
    ):
        super().__init__()
        out = out_channels or channels
        self.channels, self.emb_channels, self.dropout, self.out_channels = channels, emb_channels, dropout, out
        self.use_conv, self.use_checkpoint, self.use_scale_shift_norm = use_conv, use_checkpoint, use_scale_shift_norm
        self.in_layers = nn.Sequential(normalization(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.updown = up or down
        kind = Upsample if up else Downsample
        self.h_upd = kind(channels, False) if self.updown else nn.Identity()
        self.x_upd = kind(channels, False) if self.updown else nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (1 + use_scale_shift_norm) * out))
        last = zero_module(nn.Conv2d(out, out, 3, padding=1))
        self.out_layers = nn.Sequential(normalization(out), nn.SiLU(), nn.Dropout(p=dropout), last)
        if out == channels:
            self.skip_connection = nn.Identity()
        else:
            self.skip_connection = nn.Conv2d(channels, out, 3, padding=1) if use_conv else nn.Conv2d(channels, out, 1)

    def forward(self, x, emb):
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x, emb):
        h = self.in_layers[:-1](x)
        if self.updown:
            h, x = self.h_upd(h), self.x_upd(x)
        h = self.in_layers[-1](h)
        emb_out = self.emb_layers(emb).type(h.dtype)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = th.chunk(emb_out, 2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + emb_out)
        return self.skip_connection(x) + h


class QKVAttentionLegacy(nn.Module):
    """Channels are heads first, then queries, keys and values."""

    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(bs * self.n_heads, 3 * ch, length).split(ch, dim=1)
        scale = ch**-0.25
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = th.softmax(weight.float(), dim=-1).type(weight.dtype)
        return th.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


class QKVAttention(nn.Module):
    """Channels are queries, keys and values first, then heads."""

    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = (part.reshape(bs * self.n_heads, ch, length) for part in qkv.chunk(3, dim=1))
        scale = ch**-0.25
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = th.softmax(weight.float(), dim=-1).type(weight.dtype)
        return th.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


class AttentionBlock(nn.Module):
    """Attention between pixels, with a residual."""

    def __init__(
        self, channels, num_heads=1, num_head_channels=-1, use_checkpoint=False, use_new_attention_order=False
    ):
        super().__init__()
        self.channels, self.use_checkpoint = channels, use_checkpoint
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.norm = normalization(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        return checkpoint(self._forward, (x,), self.parameters(), True)

    def _forward(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.proj_out(self.attention(self.qkv(self.norm(x))))
        return (x + h).reshape(b, c, *spatial)


class UNetModel(nn.Module):
    """The whole network."""

    def __init__(
        self,
        image_size,
        in_channels,
        model_channels,
        out_channels,
        num_res_blocks,
        attention_resolutions,
        dropout=0,
        channel_mult=(1, 2, 4, 8),
        conv_resample=True,
        num_classes=None,
        use_checkpoint=False,
        use_fp16=False,
        num_heads=1,
        num_head_channels=-1,
        num_heads_upsample=-1,
        use_scale_shift_norm=False,
        resblock_updown=False,
        use_new_attention_order=False,
    ):
        super().__init__()
        upsample_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.num_classes = model_channels, num_classes
        self.dtype = th.float16 if use_fp16 else th.float32
        size = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, size), nn.SiLU(), nn.Linear(size, size))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, size)
        common = {"use_scale_shift_norm": use_scale_shift_norm, "use_checkpoint": use_checkpoint}

        def residual(channels, out, **options):
            return ResBlock(channels, size, dropout, out_channels=out, **common, **options)

        def attention(channels, heads):
            return AttentionBlock(channels, heads, num_head_channels, use_checkpoint, use_new_attention_order)

        ch = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(nn.Conv2d(in_channels, ch, 3, padding=1))])
        chans, ds, last = [ch], 1, len(channel_mult) - 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers, ch = [residual(ch, int(mult * model_channels))], int(mult * model_channels)
                layers += [attention(ch, num_heads)] if ds in attention_resolutions else []
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                chans.append(ch)
            if level != last:
                layer = residual(ch, ch, down=True) if resblock_updown else Downsample(ch, conv_resample)
                self.input_blocks.append(TimestepEmbedSequential(layer))
                chans.append(ch)
                ds *= 2
        self.middle_block = TimestepEmbedSequential(residual(ch, ch), attention(ch, num_heads), residual(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers, ch = [residual(ch + chans.pop(), int(model_channels * mult))], int(model_channels * mult)
                layers += [attention(ch, upsample_heads)] if ds in attention_resolutions else []
                if level and i == num_res_blocks:
                    layers.append(residual(ch, ch, up=True) if resblock_updown else Upsample(ch, conv_resample))
                    ds //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        conv = zero_module(nn.Conv2d(ch, out_channels, 3, padding=1))
        self.out = nn.Sequential(normalization(ch), nn.SiLU(), conv)

    def convert_to_fp16(self, dtype=th.float16):
        """The convolutions of the torso in float16, the rest in float32 (the original takes no argument)."""
        for part in (self.input_blocks, self.middle_block, self.output_blocks):
            for module in part.modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)

    def forward(self, x, timesteps, y=None):
        hs = []
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if self.num_classes is not None:
            emb = emb + self.label_emb(y)
        h = x.type(self.dtype)
        for module in self.input_blocks:
            h = module(h, emb)
            hs.append(h)
        h = self.middle_block(h, emb)
        for module in self.output_blocks:
            h = module(th.cat([h, hs.pop()], dim=1), emb)
        return self.out(h.type(x.dtype))


class SuperResModel(UNetModel):
    """Sees a small image too."""

    def __init__(self, image_size, in_channels, *args, **kwargs):
        super().__init__(image_size, in_channels * 2, *args, **kwargs)

    def forward(self, x, timesteps, low_res=None, **kwargs):
        upsampled = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(th.cat([x, upsampled], dim=1), timesteps, **kwargs)


def install():
    """Puts the classes into modules of the original's names, where pickle finds them too."""
    for path in (PACKAGE, f"{PACKAGE}.nn", f"{PACKAGE}.unet"):
        sys.modules.setdefault(path, types.ModuleType(path))
    for value in list(globals().values()):
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == __name__:
            value.__module__ = f"{PACKAGE}.nn" if value is GroupNorm32 else f"{PACKAGE}.unet"
            setattr(sys.modules[value.__module__], value.__name__, value)


install()
