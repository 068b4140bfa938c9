"""The models as Flax modules. No other part of the package imports Flax."""
