"""Physically smaller networks, from the axes that a model's jaxpr ties together."""
