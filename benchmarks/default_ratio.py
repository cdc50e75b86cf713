"""Chooses the default of `fallback_ratio`, by a rule fixed before its runs.

Candidates are 1, 0.1, 0.02, 0.005 and 0.001. LARS of all leaves and `optax.lars` with
its own defaults stand beside them and are not candidates.

Screening, on four networks of scikit-learn's and MNIST's digits at the learning rates
10, 20, 40 and 80: the two networks of `benchmarks.ablations`, three seeds each, and the
two dense networks of `benchmarks.dense`, without and with LayerNorm, eight seeds each.
A setting is one network at one learning rate. The shortfall of a candidate in a setting
is the best candidate's mean accuracy on held-out images minus its own. A candidate is
judged by its largest shortfall over all settings. The best two other than 0.02 go on
with 0.02.

Final: Fashion-MNIST at batch 8,192, networks without and with BatchNorm, learning rates
20 and 40, 30 epochs, seeds 0 and 1, accuracy on the study's validation images. The
candidate with the smallest largest shortfall becomes the default. If that of 0.02
exceeds it by at most one standard error, 0.02 does. The standard error is that of a
difference of two means: the standard deviation between seeds, pooled over all settings
and candidates of the final, times the root of 2 divided by the number of seeds.

    python -m benchmarks.ablations --only excluded     the screening of two networks
    python -m benchmarks.dense                         the screening of the other two
    python -m benchmarks.default_ratio [--hours 2]     the final, then both tables
"""
