"""The differentiable operators: one file each, with the public function, its reference and its registration."""

from emfast.ops.attention import attention as attention
from emfast.ops.attention import packed_attention as packed_attention
from emfast.ops.blur import blur as blur
from emfast.ops.blur import blur_misfit as blur_misfit
from emfast.ops.convolution import convolution as convolution
from emfast.ops.convolution_weight_gradient import convolution_weight_gradient as convolution_weight_gradient
from emfast.ops.group_norm_fork import group_norm_fork as group_norm_fork
from emfast.ops.group_norm_silu import group_norm_silu as group_norm_silu
from emfast.ops.group_norm_silu import modulated as modulated
from emfast.ops.mask_misfit import mask_misfit as mask_misfit
from emfast.ops.residual_sum import residual_sum as residual_sum
from emfast.ops.sampler_update import sampler_update as sampler_update
from emfast.ops.separable_blur import separable_blur as separable_blur
from emfast.ops.separable_blur import separable_blur_misfit as separable_blur_misfit
from emfast.ops.winograd_convolution import WinogradWeights as WinogradWeights
from emfast.ops.winograd_convolution import winograd_convolution as winograd_convolution
from emfast.ops.winograd_convolution import winograd_kernel as winograd_kernel
from emfast.ops.winograd_weight_gradient import winograd_weight_gradient as winograd_weight_gradient
