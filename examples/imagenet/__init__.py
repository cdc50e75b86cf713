"""An image trainer for LARS and SGD on one or many devices, processes and machines.

`python -m examples.imagenet --help` lists the flags of one run. `make train` runs
`examples.imagenet.demo`: three optimizers at two batch sizes on built-in data.
"""
