"""The ways to compute a convolution; `emfast.nn.convolution` picks one.

A way is a module that takes the operands of `emfast.nn.ways.operands` and has

- `unsupported(plan, xs, weights, biases)`: why it cannot take tensors, or None;
- `forward(plan, xs, weights, biases, residual)`: the convolution of the inputs plus the residual;
- `to_inputs(plan, grad, shapes, weights, needs)`: the gradients to those inputs that need one;
- `to_weights(plan, grad, xs, weights)`: the gradient to the kernels of the inputs' channels, (D, C, K, K) in the order
  of the result's channels, and that to the bias, or None where it is the sum over pixels.
"""
