"""Programs that use `lars_optax`; run them from the repository's root."""
