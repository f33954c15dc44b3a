"""The Open Inference Protocol: datatypes, tensors, JSON codec, error texts. Pure."""
