"""LARS, Layer-wise Adaptive Rate Scaling, as gradient transformations for Optax.

The names in this file are public. All other names of the package are private.
"""

from lars_optax import recipes as recipes
from lars_optax._larc import larc as larc
from lars_optax._lars import lars as lars
from lars_optax._lars import scale_by_lars as scale_by_lars
from lars_optax._layer_stats import layer_stats as layer_stats
from lars_optax._masks import exclude_bias_and_norm as exclude_bias_and_norm
from lars_optax._masks import match_paths as match_paths
from lars_optax._noise_scale import NoiseScale as NoiseScale
from lars_optax._noise_scale import gradient_noise_scale as gradient_noise_scale
from lars_optax._plots import plot_layer_stats as plot_layer_stats
from lars_optax._rule import LayerStats as LayerStats
from lars_optax._schedules import epochs_to_steps as epochs_to_steps
from lars_optax._schedules import linear_scaling as linear_scaling
from lars_optax._schedules import sqrt_scaling as sqrt_scaling
from lars_optax._schedules import suggested_learning_rate as suggested_learning_rate
from lars_optax._schedules import (
    warmup_piecewise_constant_schedule as warmup_piecewise_constant_schedule,
)
from lars_optax._schedules import (
    warmup_polynomial_decay_schedule as warmup_polynomial_decay_schedule,
)
from lars_optax._tables import describe_mask as describe_mask
from lars_optax._tables import format_layer_stats as format_layer_stats
from lars_optax._transform import ScaleByLarsState as ScaleByLarsState

__version__ = "0.1.0"
