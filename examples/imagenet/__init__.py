"""An image trainer: flags, data, network, optimizer, step, engine, loop, report.

`python -m examples.imagenet --help` lists the flags of one run; `make train` runs
`examples.imagenet.demo`, three optimizers at two batch sizes on built-in data.
"""
