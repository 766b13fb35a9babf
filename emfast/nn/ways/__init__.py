"""The ways to compute a convolution; `emfast.nn.convolution` picks one.

A way is a module that takes the operands of `emfast.nn.ways.operands` and has

- `unsupported(plan, xs, weights, biases)`: why it cannot take tensors, or None;
- `forward(plan, xs, weights, biases, residual)`: the convolution of the inputs plus the residual;
- `to_inputs(plan, g, shapes, weights, needs)`: the gradients to those inputs that need one;
- `to_weights(plan, g, xs, weights)`: the gradient to the kernels of the inputs' channels, (D, C, K, K) in the order
  of the result's channels, and that to the bias, or None where it is the sum over pixels.

Arguments:
    plan: The constants of the convolution.
    xs, shapes: (B, C, H, W) inputs, side by side along channels, and their shapes.
    weights, biases: Those of the layers that are computed at once.
    g: (B, D, H', W') the gradient to the result.
    needs: Whether each input needs a gradient.
"""
