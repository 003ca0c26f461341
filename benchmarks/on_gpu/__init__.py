"""Everything that has to be run on a GPU, in one command of less than seven minutes.

`python -m benchmarks.on_gpu` needs a checkout, JAX and the packages of `jaxprune[cli]`, and no
network. PyTorch is compared where it is installed. It checks masks and steps against the CPU, then
times masks, training steps, many leaves and block products, and prints one table and writes one
JSON. On a machine without a GPU it takes the same steps at small sizes.
"""
