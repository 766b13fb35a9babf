"""Building blocks of U-Nets on channels_last images; `emfast.accelerate` puts them into the networks of other packages.

`convolution` is a function of images and weights, for layers that are to keep their own; `GroupNormSiLU` and
`SelfAttention2d` are modules. `examples/own_network.py` is a U-Net made of them.
"""

from emfast.nn.convolution import Shortcut as Shortcut
from emfast.nn.convolution import convolution as convolution
from emfast.nn.modules import GroupNormSiLU as GroupNormSiLU
from emfast.nn.modules import SelfAttention2d as SelfAttention2d
