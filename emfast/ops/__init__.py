"""The differentiable operators: one file each, with the public function, its reference and its registration."""

from emfast.ops.attention import attention as attention
from emfast.ops.convolution import convolution as convolution
from emfast.ops.convolution_weight_gradient import convolution_weight_gradient as convolution_weight_gradient
from emfast.ops.group_norm_silu import group_norm_silu as group_norm_silu
from emfast.ops.group_norm_silu import modulated as modulated
