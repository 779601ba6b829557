"""A ResNet as people train it, with quantized uplinks and an audit."""
